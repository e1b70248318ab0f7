"""Atomic writes: after a crash or power cut, a path holds its old content or its new content, never part of either."""

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

OWN_PREFIX = ".aecli-"  # names of temporary files and locks beside the output
_TEMPORARY = ".tmp"
_own_temporary: set[Path] = set()  # temporary paths that this process is writing now


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, renamed to `path` when the block ends without an exception.

    The content is fsynced before the rename. Missing parent folders are created.

    Raises:
        OutputError: `path` can't be written or the disk is full; its old content is kept.
    """
    # A folder, because libraries put files of their own beside the one they write; each thread writes one at a time.
    temporary = path.with_name(f"{OWN_PREFIX}{this_process()}-{threading.get_ident()}{_TEMPORARY}")
    try:
        make_folder(path.parent)
        try:
            _remove(temporary)  # left by a killed process with the same pid
            _own_temporary.add(temporary)
            temporary.mkdir()
            yield temporary / path.name
            fsync_path(temporary / path.name)
            os.replace(temporary / path.name, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # a later command removes what remains
            _own_temporary.discard(temporary)
        fsync_folder(path.parent)
    except FileExistsError as error:
        raise OutputError(f"{path} can't be written: {path.parent} is not a folder") from error
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error.strerror or error}") from error


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file that replaces `path` as `atomic_path` does, with the same errors."""
    with atomic_path(path) as new, open(new, "wb") as file:
        yield file


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Yield a new folder in `parent`, removed when the block ends; a later command removes a killed process's.

    Raises:
        OutputError: it can't be created.
    """
    scratch = parent / f"{OWN_PREFIX}{this_process()}-scratch{_TEMPORARY}"
    try:
        make_folder(parent)
        _remove(scratch)
        scratch.mkdir()
    except OSError as error:
        raise OutputError(f"{parent} can't be written: {error.strerror or error}") from error
    _own_temporary.add(scratch)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        _own_temporary.discard(scratch)


def replace_folder(new: Path, folder: Path) -> None:
    """Rename the folder `new` to `folder`, removing what was there.

    Raises:
        OutputError: it can't be renamed or removed.
    """
    old = folder.with_name(f"{OWN_PREFIX}{this_process()}-old{_TEMPORARY}")
    try:
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
        fsync_folder(folder.parent)
        _remove(old)
    except OSError as error:
        raise OutputError(f"{folder} can't be written: {error.strerror or error}") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically; raises OutputError like `atomic_write`."""
    with atomic_write(path) as file:
        file.write(content)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal; raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(folder: Path) -> list[Path]:
    """Create `folder` and its missing parents durably; return the created ones, deepest first.

    Raises:
        OSError: it can't be created.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        fsync_folder(each.parent)
    return missing


def remove_empty_folders(folders: list[Path]) -> None:
    """Undo `make_folder`: remove the folders it created, up to the first that is not empty or can't be removed."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def list_names(folder: Path) -> list[str]:
    """Names in `folder`, without aecli's temporary files and locks; raises OSError."""
    return [name for name in os.listdir(folder) if not name.startswith(OWN_PREFIX)]


def remove_temporary_files(folder: Path, recursive: bool = False, any_owner: bool = False) -> None:
    """Remove the temporary files in `folder` of processes of this host that have ended.

    Args:
        folder: where to look.
        recursive: look in its subfolders too.
        any_owner: remove those of living processes and of other hosts too.

    Raises:
        OSError: one can't be removed.
    """
    pattern = f"{OWN_PREFIX}*{_TEMPORARY}"
    for left in list(folder.rglob(pattern) if recursive else folder.glob(pattern)):
        host, _, pid = left.name.removeprefix(OWN_PREFIX).rpartition("-")[0].rpartition("-")
        if any_owner or is_dead(host, pid):
            _remove(left)


def remove_own_temporary_files() -> None:
    """Remove the temporary files of this process, which is about to exit."""
    for temporary in tuple(_own_temporary):  # a copy: other threads still write
        shutil.rmtree(temporary, ignore_errors=True)


def _remove(path: Path) -> None:
    """Remove a file or a whole folder, if it exists; raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_writable_file(path: Path, flag: str) -> None:
    """Check, before any work, that an output file can be written to `path`.

    Raises:
        OutputError: it is a folder, a device or anything else but a regular file, or can't be written; names `flag`.
    """
    if path.is_dir():
        raise OutputError(f"{flag} {path} is a folder\nhint: name a file")
    if os.path.lexists(path) and not path.is_file():
        raise OutputError(f"{flag} {path} is not a regular file, so it is not replaced\nhint: name another file")
    try:
        make_folder(path.parent)
        with tempfile.TemporaryFile(dir=path.parent):
            remove_temporary_files(path.parent)
    except OSError as error:
        raise OutputError(f"{flag} {path} can't be written: {error.strerror or error}") from error


def make_output_folder(folder: Path, overwrite: bool) -> int:
    """Create `folder` if it is missing and return how many entries it holds.

    Raises:
        OutputError: it is not empty and `overwrite` is False, or it can't be created or written.
    """
    try:
        make_folder(folder)
        held = len(list_names(folder))
    except OSError as error:
        raise OutputError(f"{folder} can't be used as an output folder: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{folder} can't be written: permission denied")
    if held and not overwrite:
        raise OutputError(f"{folder} already holds {held} files or folders\nhint: --overwrite, or another --out")
    try:
        remove_temporary_files(folder, recursive=True)
    except OSError as error:
        raise OutputError(f"{folder} can't be written: {error.strerror or error}") from error
    return held


def fsync_folder(folder: Path) -> None:
    """Fsync a folder, so that a rename in it survives a power cut; does nothing on Windows."""
    if os.name == "posix":
        fsync_path(folder)


def fsync_path(path: Path) -> None:
    """Fsync a file or, on POSIX, a folder; raises OSError."""
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # Windows flushes only writable files
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
