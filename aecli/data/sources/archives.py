"""What an honest archive does not hold, whatever its format."""

import posixpath
import re
from collections.abc import Iterable

from aecli.errors import DataError, single_line


def check_path(holds: str, path: str) -> None:
    """Refuse a path that leads out of its archive; `holds` begins the message.

    Raises:
        DataError: it does.
    """
    if path.startswith("/") or re.match(r"[A-Za-z]:", path) or ".." in path.split("/"):
        raise DataError(f"{holds}, a path that leads out of it: not an archive to trust.")


def check_folders(source: str, names: Iterable[str]) -> None:
    """Refuse a name that is the folder of another: no disk can hold both, nor what is made of them.

    Raises:
        DataError: it names one.
    """
    known = set(names)
    folders: set[str] = set()
    for name in known:
        while (name := posixpath.dirname(name)) and name not in folders:
            folders.add(name)
    both = next(iter(sorted(known & folders)), None)
    if both is not None:
        raise DataError(f"{source} holds {single_line(both)} both as an image and as a folder.")
