"""Which process is which, and locks between them."""

import errno
import os
import socket
import sys
import time
from contextlib import suppress
from io import FileIO
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_LONGEST_OWNER = 400  # bytes
_LOOKS, _POLL_SECONDS = 20, 0.01


def this_process() -> str:
    """`host-pid`."""
    return f"{_host()}-{os.getpid()}"


def _host() -> str:
    return socket.gethostname().replace(os.sep, "_")


def is_alive(host: str, pid: str) -> bool:
    """Whether that is a living process of this host."""
    if host != _host() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def is_dead(host: str, pid: str) -> bool:
    """Whether that was a process of this host; of another's nothing is known."""
    return host == _host() and pid.isdecimal() and not is_alive(host, pid)


class Lock:
    """A lock between processes: a file that its holder keeps open. It ends with its holder, however that ends.

    The file says who holds it. Where the system or the file system knows no such locks, the file is another user's or
    the disk read-only, everybody gets it, and `excludes` stays False.
    """

    def __init__(self, path: Path, by_name: bool = False) -> None:
        """Name the file; nothing is made yet.

        `by_name`: on a file system without locks, a living process of this host that the file names holds it.
        """
        self._path = path
        self._by_name = by_name
        self._file: FileIO | None = None
        self._other = ("", "")
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
                # Neither through a link nor into a pipe that a stranger's folder may hold under that name.
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
                file = open(os.open(self._path, flags, 0o666), "r+b", buffering=0)
            except OSError as error:
                if isinstance(error, PermissionError) or error.errno == errno.EROFS:
                    return True
                raise
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.excludes = True
            except BlockingIOError:
                self._other = _owner(file)
                file.close()
                return False
            except OSError:  # no locks on this file system
                self.excludes = False
                self._other = _owner(file) if self._by_name else ("", "")
                if is_alive(*self._other):
                    file.close()
                    return False
            if self._is_mine(file):
                self._file = file
                self._sign()
                return True
            file.close()

    def close(self) -> None:
        """Let others take it; does nothing where it isn't held."""
        if self._file is not None:
            with suppress(OSError):  # one that stays locks nothing
                self._path.unlink()
            self._file.close()
        self._file, self.excludes = None, False

    def holder(self) -> str:
        """Who held it when it couldn't be taken, in words: `process 4242 on host-a`."""
        host, pid = self._other
        return f"process {pid} on {host}" if pid else "another process"

    def _sign(self) -> None:
        assert self._file is not None
        try:
            self._file.truncate(0)
            self._file.write(this_process().encode())
        except OSError:
            self.close()
            raise

    def _is_mine(self, file: FileIO) -> bool:
        """Whether `file` still has the name: one whose holder has just released it hasn't, and locks nothing."""
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self._path))
        except FileNotFoundError:
            return False


def _owner(file: FileIO) -> tuple[str, str]:
    """Host and process that a lock's file names, empty where it names none; one just made is signed in a moment."""
    for _ in range(_LOOKS):
        if text := os.pread(file.fileno(), _LONGEST_OWNER, 0):
            break
        time.sleep(_POLL_SECONDS)
    host, _, pid = text.decode(errors="replace").rpartition("-")
    return host, pid
