"""Output paths named by the user: never over an input, with a notice where a file is replaced."""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aecli.errors import OutputError
from aecli.progress import Listener, Notice
from aecli.storage.atomic_files import (
    as_output_error,
    list_names,
    make_folder,
    remove_temporary_files,
    scratch_folder,
    write_bytes,
)


def write_output(path: Path, content: bytes, listen: Listener) -> None:
    """Write a file atomically, with a notice where it replaces one; raises OutputError like `atomic_write`."""
    notify_if_replaced(path, listen)
    write_bytes(path, content)


def notify_if_replaced(path: Path, listen: Listener) -> None:
    """Send a notice if `path`, which is about to be written, exists."""
    if path.exists():
        listen(Notice(f"replacing {path}"))


@contextmanager
def shared_scratch_folder(path: Path, is_main_process: bool, broadcast: Callable[[Any], Any]) -> Iterator[Path]:
    """Yield one new folder beside `path` to all processes, removed when the main process's block ends.

    `broadcast` returns the main process's value in every process. Raises OutputError if it can't be created.
    """
    if not is_main_process:
        yield Path(broadcast(None))
        return
    with scratch_folder(path.parent) as scratch:
        broadcast(str(scratch))
        yield scratch


def check_writable_file(path: Path, flag: str) -> None:
    """Check, before any work, that an output file can be written to `path`.

    Raises:
        OutputError: it is a folder, a device or anything else but a regular file, or can't be written; names `flag`.
    """
    if path.is_dir():
        raise OutputError(f"{flag} {path} is a folder\nhint: name a file")
    if os.path.lexists(path) and not path.is_file():
        raise OutputError(f"{flag} {path} is not a regular file, so it is not replaced\nhint: name another file")
    with as_output_error(f"{flag} {path}"):
        make_folder(path.parent)
        with tempfile.TemporaryFile(dir=path.parent):
            remove_temporary_files(path.parent)


def prepare_output_folder(folder: Path, overwrite: bool, listen: Listener) -> None:
    """Create `folder` if it is missing, with a notice where files in it may be replaced.

    Raises:
        OutputError: it can't be written, or is not empty and `overwrite` is False.
    """
    with as_output_error(folder):
        make_folder(folder)
        held = len(list_names(folder))
        if not os.access(folder, os.W_OK):
            raise OutputError(f"{folder} can't be written: permission denied")
        if held and not overwrite:
            raise OutputError(f"{folder} already holds {held} files or folders\nhint: --overwrite, or another --out")
        remove_temporary_files(folder, recursive=True)
    if held:
        listen(Notice(f"{folder} already holds {held} files or folders: those of the same name are replaced"))


def forbid_overwriting_inputs(flag: str, outputs: Iterable[Path], inputs: Iterable[str]) -> None:
    """Raise OutputError if one of `outputs` is one of `inputs`, by whatever path or link it is named."""
    there = {_identity(os.lstat(path)): path for path in outputs if os.path.lexists(path)}
    if not there:
        return  # the usual case: saves a stat of every input
    for path in inputs:
        if os.path.exists(path) and (output := there.get(_identity(os.stat(path)))):
            raise OutputError(f"{flag}: {output} is one of the input files\nhint: name another place")


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
