"""Atomic writes: after a crash or power cut, a path holds its old content or its new content, never part of either."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from aecli.errors import OutputError, entering
from aecli.storage.locks import is_dead, this_process

OWN_PREFIX = ".aecli-"  # names of temporary files and locks beside the output
_TEMPORARY = ".tmp"
_numbers = count()  # of this process's temporary folders
_own_temporary: set[Path] = set()  # those that it uses now


@contextmanager
def as_output_error(path: Path | str) -> Iterator[None]:
    """Turn an OSError inside the block into an OutputError: `path` can't be written."""
    try:
        yield
    except FileExistsError as error:
        raise OutputError(f"{path} can't be written: {error.filename} is not a folder") from error
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error.strerror or error}") from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, renamed to `path` when the block ends without an exception.

    The content is fsynced before the rename. Missing parent folders are created.

    Raises:
        OutputError: `path` can't be written or the disk is full; its old content is kept.
    """
    # In a folder, because libraries put files of their own beside the one they write.
    with as_output_error(path), _temporary_folder(path.parent) as temporary:
        yield temporary / path.name
        fsync_path(temporary / path.name)
        os.replace(temporary / path.name, path)
        fsync_folder(path.parent)


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file that replaces `path` as `atomic_path` does, with the same errors."""
    with atomic_path(path) as new, open(new, "wb") as file:
        yield file


def scratch_folder(parent: Path) -> AbstractContextManager[Path]:
    """Yield a new folder in `parent`, removed when the block ends; raises OutputError if it can't be created."""
    return entering(_temporary_folder(parent), as_output_error(parent))


@contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    """`scratch_folder`, with OSErrors; if the process is killed, a later command removes it."""
    temporary = parent / f"{OWN_PREFIX}{this_process()}-{next(_numbers)}{_TEMPORARY}"
    try:
        make_folder(parent)
        _remove(temporary)  # left by a killed process with the same pid
        _own_temporary.add(temporary)
        temporary.mkdir()
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _own_temporary.discard(temporary)


def replace_folder(new: Path, folder: Path) -> None:
    """Rename the folder `new` to `folder`, removing what was there; raises OutputError."""
    with as_output_error(folder), _temporary_folder(folder.parent) as temporary:
        if folder.exists():
            os.replace(folder, temporary / folder.name)
        os.replace(new, folder)
        fsync_folder(folder.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically; raises OutputError like `atomic_write`."""
    with atomic_write(path) as file:
        file.write(content)


def write_json(path: Path, document: Mapping[str, Any], indent: int | None = 2) -> None:
    """Write a strict JSON object to `path` atomically; raises OutputError like `atomic_write`."""
    write_bytes(path, (json.dumps(document, indent=indent, allow_nan=False) + "\n").encode())


def remove_folder(folder: Path) -> None:
    """Remove a folder with all that is in it, if there is one; raises OSError."""
    if folder.is_dir():
        shutil.rmtree(folder)


def copy_file(source: Path, path: Path) -> None:
    """Copy a file's content to `path` atomically; raises OutputError like `atomic_write`."""
    with atomic_write(path) as file, open(source, "rb") as content:
        shutil.copyfileobj(content, file)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal; raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(folder: Path) -> list[Path]:
    """Create `folder` and its missing parents durably; return the created ones, deepest first. Raises OSError."""
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
    """Remove the temporary files in `folder` of processes of this host that have ended; raises OSError.

    With `recursive`, those in its subfolders too; with `any_owner`, those of living processes and of other hosts too.
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
