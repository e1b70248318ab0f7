"""Locks between processes: `filelock`'s, with the host and pid of their holder in the lock file."""

import errno
import os
import socket
from contextlib import suppress
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

# A lock whose file names no holder is tried again: its holder is about to sign it, or has just removed it.
_ATTEMPTS, _ATTEMPT_SECONDS = 5, 0.05
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}  # of a file system without locks


def this_process() -> str:
    """Return `host-pid`."""
    return f"{_host()}-{os.getpid()}"


def _host() -> str:
    return socket.gethostname().replace(os.sep, "_")


def is_alive(host: str, pid: str) -> bool:
    """Whether that is a living process of this host."""
    if host != _host() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except PermissionError:  # another user's
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def is_dead(host: str, pid: str) -> bool:
    """Whether that was a process of this host and has ended; False for other hosts, of which nothing is known."""
    return host == _host() and pid.isdecimal() and not is_alive(host, pid)


class Lock:
    """A lock between processes that ends with its holder, however that ends, and names the holder in its file.

    Where no process can be excluded (a file system without locks, a read-only one, a lock file of another user), all
    get it, and `excludes` stays False.
    """

    def __init__(self, path: Path, by_name: bool = False) -> None:
        """Name the file, without creating it.

        `by_name`: on a file system without locks, a living process of this host that the file names holds the lock.
        """
        self._path, self._by_name = path, by_name
        # Not filelock's fallback, a file whose existence locks: it outlives a holder on another host that crashed.
        self._lock = FileLock(path, thread_local=False, fallback_to_soft=False, on_acquired=partial(_sign, path))
        self._holder = ("", "")
        self._is_held = False
        self.excludes = False  # whether it is held and nobody else can hold it

    def take(self) -> bool:
        """Acquire the lock without waiting for its holder; False where there is one.

        Raises:
            OSError: the file can't be created, or something else stands in its place.
        """
        try:
            self._is_held = self.excludes = self._acquire()
            return self._is_held
        except PermissionError:
            return True
        except OSError as error:
            if error.errno == errno.EROFS:
                return True
            if error.errno not in _NO_LOCKS:
                raise
            self._holder = self._owner() if self._by_name else ("", "")
            if is_alive(*self._holder):
                return False
            self._path.write_text(this_process())
            self._is_held = True
            return True

    def _acquire(self) -> bool:
        """Acquire filelock's lock, or find out who holds it."""
        for _ in range(_ATTEMPTS):
            try:
                self._lock.acquire(timeout=_ATTEMPT_SECONDS, poll_interval=_ATTEMPT_SECONDS / 5)
                return True
            except Timeout:
                self._holder = self._owner()
                if self._holder[1]:
                    break
        return False

    def close(self) -> None:
        """Release the lock and remove its file; does nothing where it isn't held."""
        if self._is_held:
            self._is_held = self.excludes = False
            with suppress(OSError):  # a file that stays locks nothing
                self._path.unlink()  # before the release: who acquires it meanwhile finds it deleted, and tries again
            self._lock.release()

    def holder(self) -> str:
        """Return who held it when it couldn't be taken: `process 4242 on host-a`."""
        host, pid = self._holder
        return f"process {pid} on {host}" if pid else "another process"

    @property
    def is_ours(self) -> bool:
        """Whether this process held it when it couldn't be taken."""
        return "-".join(self._holder) == this_process()

    def _owner(self) -> tuple[str, str]:
        """Return the host and pid that the file names, empty where it names none."""
        try:
            host, _, pid = self._path.read_text(errors="replace").rpartition("-")
        except OSError:
            return "", ""
        return host, pid


def _sign(path: Path, descriptor: int) -> None:
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, this_process().encode())
    except OSError:  # a full disk
        path.unlink(missing_ok=True)
        raise
