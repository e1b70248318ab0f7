"""Where a command is told to write: never over what it reads, and told where it replaces something."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aecli.errors import OutputError
from aecli.progress import Listener, Notice
from aecli.storage.atomic_files import claim_folder, scratch_folder, write_bytes


def write_output(path: Path, content: bytes, listen: Listener) -> None:
    """Write a file that the user named, all of it or nothing, and say so where it replaces one.

    Raises:
        OutputError: it can't be written; what stood there before still stands.
    """
    tell_replaced(path, listen)
    write_bytes(path, content)


def tell_replaced(path: Path, listen: Listener) -> None:
    """Say so if a file stands where one is about to be written."""
    if path.exists():
        listen(Notice(f"replacing {path}"))


@contextmanager
def scratch_beside(path: Path, is_main_process: bool, broadcast: Callable[[Any], Any]) -> Iterator[Path]:
    """Yield a new folder beside `path`, the same one in every process, removed when the main process's block ends.

    `broadcast` returns the main process's value in all of them.

    Raises:
        OutputError: it can't be made.
    """
    if not is_main_process:
        yield Path(broadcast(None))
        return
    with scratch_folder(path.parent) as scratch:
        broadcast(str(scratch))
        yield scratch


def claim_output_folder(folder: Path, overwrite: bool, listen: Listener) -> None:
    """Make `folder` if need be; say so where files in it may be replaced.

    Raises:
        OutputError: it can't be written, or holds something and `overwrite` is False.
    """
    held = claim_folder(folder, overwrite)
    if held:
        listen(Notice(f"{folder} already holds {held} files or folders: writing over those of the same name"))


def require_not_read(flag: str, outputs: Iterable[Path], inputs: Iterable[str]) -> None:
    """Refuse to write over one of `inputs`, by whatever path.

    Raises:
        OutputError: it names the first of `outputs` that is one of them.
    """
    there = {_identity(os.lstat(path)): path for path in outputs if os.path.lexists(path)}
    if not there:
        return  # the usual case: no need to look at millions of inputs
    for path in inputs:
        if os.path.exists(path) and (output := there.get(_identity(os.stat(path)))):
            raise OutputError(f"{flag}: {output} is one of the files that are read; name another place")


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
