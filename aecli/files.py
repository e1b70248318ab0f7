"""Writing files so that, whenever the power goes, the old file or the new one is there, whole."""

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from aecli.errors import OutputError

if sys.platform != "win32":
    import fcntl


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; when the block ends without an exception it takes the place of `path`.

    The content is flushed to the disk before the rename. Missing parent folders are made.

    Raises:
        OutputError: the place can't be written, or the disk is full; what stood there before still stands.
    """
    # Of its own length, since that of `path` may be all that the system allows; a thread writes one file at a time.
    beside = path.with_name(f".aecli-{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield beside
            flush(beside)
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        if os.name == "posix":  # makes the rename itself last; not every system lets a folder be opened
            flush(path.parent)
    except FileExistsError as error:
        raise OutputError(f"{path} can't be written: {path.parent} is no folder") from error
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error.strerror or error}") from error


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file whose content takes the place of `path`, as `atomic_path` does and with its errors."""
    with atomic_path(path) as beside, open(beside, "wb") as file:
        yield file


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically; raises OutputError like `atomic_write`."""
    with atomic_write(path) as file:
        file.write(content)


def claim_file(path: Path, flag: str) -> bool:
    """Find out, before the work, that `path` can become a file; return whether it replaces one.

    Raises:
        OutputError: it is a folder, or can't be written.
    """
    if path.is_dir():
        raise OutputError(f"{flag} {path} is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            return path.exists()
    except OSError as error:
        raise OutputError(f"{flag} {path} can't be written: {error.strerror or error}") from error


def claim_folder(folder: Path, overwrite: bool) -> int:
    """Make `folder` if need be and return how many entries it already holds.

    Raises:
        OutputError: it holds something and `overwrite` is False, or it can't be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = sum(1 for _ in folder.iterdir())
    except OSError as error:
        raise OutputError(f"{folder} can't be used as a folder for output: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{folder} can't be written: permission denied")
    if held and not overwrite:
        raise OutputError(f"{folder} already holds {held} files or folders; add --overwrite, or name another --out")
    return held


def flush(path: Path) -> None:
    """Have the system write a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # Windows flushes what it may write
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Lock:
    """A lock between processes: a file that its holder keeps open. It ends with its holder, however that ends.

    Where the system or the file system knows no such locks, or the file is another user's, everybody gets it, and
    `excludes` stays False.
    """

    def __init__(self, path: Path) -> None:
        """Name the file; nothing is made yet."""
        self._path = path
        self._file: BinaryIO | None = None
        self.excludes = False  # whether it is held, and nobody else can hold it

    def take(self) -> bool:
        """Take the lock without waiting; False while another holds it.

        Raises:
            OSError: the file can't be made.
        """
        if sys.platform == "win32":
            return True
        while True:
            try:
                file = open(self._path, "ab")
            except PermissionError:
                return True
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.excludes = True
            except BlockingIOError:
                file.close()
                return False
            except OSError:  # no locks on this file system
                self.excludes = False
            if self._is_mine(file):
                self._file = file
                return True
            file.close()

    def close(self) -> None:
        """Let others take it; does nothing where it isn't held."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            self._file.close()
        self._file, self.excludes = None, False

    def _is_mine(self, file: BinaryIO) -> bool:
        """Whether `file` still has the name: one whose holder has just released it hasn't, and locks nothing."""
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self._path))
        except FileNotFoundError:
            return False
