"""Checks of paths that apply to archives of every format."""

import posixpath
import re
from collections.abc import Iterable

from aecli.errors import DataError, single_line


def check_path(holds: str, path: str) -> None:
    """Raise DataError for a member's path that is absolute or leads out of its archive; `holds` begins the message."""
    if path.startswith("/") or re.match(r"[A-Za-z]:", path) or ".." in path.split("/"):
        raise DataError(f"{holds}, a path that leads out of the archive: it is damaged or malicious")


def check_folders(source: str, names: Iterable[str]) -> None:
    """Raise DataError for a name that is also the folder of another: no file system can hold both."""
    known = set(names)
    folders: set[str] = set()
    for name in known:
        while (name := posixpath.dirname(name)) and name not in folders:
            folders.add(name)
    conflicts = sorted(known & folders)
    if conflicts:
        raise DataError(f"{source} holds {single_line(conflicts[0])} both as an image and as a folder")
