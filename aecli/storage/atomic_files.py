"""Writing files so that, whenever the power goes, the old file or the new one is there, whole."""

import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from aecli.errors import OutputError
from aecli.storage.locks import is_dead, this_process

OWN_PREFIX = ".aecli-"  # of what aecli keeps beside its output for a while: half-written files, locks
_HALF_WRITTEN = ".tmp"
_under_way: set[Path] = set()  # what this process is writing at the moment


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path to write to; when the block ends without an exception, what is there takes the place of `path`.

    The content is flushed to the disk before the rename. Missing parent folders are made.

    Raises:
        OutputError: the place can't be written, or the disk is full; what stood there before still stands.
    """
    # In a folder of its own, for what libraries put beside the file that they write; a thread writes one at a time.
    own = path.with_name(f"{OWN_PREFIX}{this_process()}-{threading.get_ident()}{_HALF_WRITTEN}")
    try:
        make_folder(path.parent)
        try:
            _remove(own)  # of a killed process that had our number
            _under_way.add(own)
            own.mkdir()
            yield own / path.name
            flush(own / path.name)
            os.replace(own / path.name, path)
        finally:
            shutil.rmtree(own, ignore_errors=True)  # what stays is removed by who comes next
            _under_way.discard(own)
        flush_names(path.parent)
    except FileExistsError as error:
        raise OutputError(f"{path} can't be written: {path.parent} is no folder") from error
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error.strerror or error}") from error


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file whose content takes the place of `path`, as `atomic_path` does and with its errors."""
    with atomic_path(path) as new, open(new, "wb") as file:
        yield file


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Yield a new folder in `parent`, gone when the block ends; a killed process's is removed by who comes next.

    Raises:
        OutputError: it can't be made.
    """
    scratch = parent / f"{OWN_PREFIX}{this_process()}-scratch{_HALF_WRITTEN}"
    try:
        make_folder(parent)
        _remove(scratch)
        scratch.mkdir()
    except OSError as error:
        raise OutputError(f"{parent} can't be written: {error.strerror or error}") from error
    _under_way.add(scratch)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        _under_way.discard(scratch)


def replace_folder(new: Path, folder: Path) -> None:
    """Put the folder `new` in the place of `folder`, of which nothing stays.

    Raises:
        OutputError: it can't be done.
    """
    old = folder.with_name(f"{OWN_PREFIX}{this_process()}-old{_HALF_WRITTEN}")
    try:
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
        flush_names(folder.parent)
        _remove(old)
    except OSError as error:
        raise OutputError(f"{folder} can't be written: {error.strerror or error}") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically; raises OutputError like `atomic_write`."""
    with atomic_write(path) as file:
        file.write(content)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal; raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(folder: Path) -> list[Path]:
    """Make `folder` and the missing ones above it, so that they last; return those that were made, the deepest first.

    Raises:
        OSError: it can't be made.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        flush_names(each.parent)
    return missing


def remove_empty(folders: list[Path]) -> None:
    """Undo `make_folder`, as far as the folders it made hold nothing and can be removed."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def names_in(folder: Path) -> list[str]:
    """Names of what `folder` holds, but for what aecli keeps there for a while; raises OSError."""
    return [name for name in os.listdir(folder) if not name.startswith(OWN_PREFIX)]


def remove_half_written(folder: Path, below: bool = False, by_anyone: bool = False) -> None:
    """Remove what processes of this host, now dead, left half written in `folder`.

    `below`: in the folders in it too; `by_anyone`: all that is half written.

    Raises:
        OSError: one can't be removed.
    """
    pattern = f"{OWN_PREFIX}*{_HALF_WRITTEN}"
    for left in list(folder.rglob(pattern) if below else folder.glob(pattern)):
        host, _, pid = left.name.removeprefix(OWN_PREFIX).rpartition("-")[0].rpartition("-")
        if by_anyone or is_dead(host, pid):
            _remove(left)


def drop_under_way() -> None:
    """Remove what this process is in the middle of writing, as it is about to end."""
    for own in tuple(_under_way):  # another thread is still at work
        shutil.rmtree(own, ignore_errors=True)


def _remove(path: Path) -> None:
    """Remove a folder with what is in it, or a file, if it is there; raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def claim_file(path: Path, flag: str) -> None:
    """Find out, before the work, that `path` can become a file.

    Raises:
        OutputError: it is a folder, a device or another thing that no file may take the place of, or can't be written.
    """
    if path.is_dir():
        raise OutputError(f"{flag} {path} is a folder; name a file")
    if os.path.lexists(path) and not path.is_file():
        raise OutputError(f"{flag} {path} is no file that could be replaced; name another")
    try:
        make_folder(path.parent)
        with tempfile.TemporaryFile(dir=path.parent):
            remove_half_written(path.parent)
    except OSError as error:
        raise OutputError(f"{flag} {path} can't be written: {error.strerror or error}") from error


def claim_folder(folder: Path, overwrite: bool) -> int:
    """Make `folder` if need be and return how many entries it already holds.

    Raises:
        OutputError: it holds something and `overwrite` is False, or it can't be made or written.
    """
    try:
        make_folder(folder)
        held = len(names_in(folder))
    except OSError as error:
        raise OutputError(f"{folder} can't be used as a folder for output: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{folder} can't be written: permission denied")
    if held and not overwrite:
        raise OutputError(f"{folder} already holds {held} files or folders; add --overwrite, or name another --out")
    try:
        remove_half_written(folder, below=True)
    except OSError as error:
        raise OutputError(f"{folder} can't be written: {error.strerror or error}") from error
    return held


def flush_names(folder: Path) -> None:
    """Have a folder's list of names written to the disk, so that a rename lasts; not every system can."""
    if os.name == "posix":
        flush(folder)


def flush(path: Path) -> None:
    """Have the system write a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # Windows flushes what it may write
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
