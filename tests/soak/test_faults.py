"""Every write made to fail, and the process killed at every write: what was there stays whole, and the run goes on.

    pytest -m soak tests/soak/test_faults.py -s

What changes a file passes through the interpreter, which tells hooks of it before it happens: so each such moment is
met, not most of them. What happens inside a file is met by a limit on the size of files, and by a disk that is full.
"""

import ctypes
import errno
import itertools
import os
import resource
import shutil
import signal
import sys
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from aecli.training import sync
from tests.soak.runs import TRAIN, require_sound, require_tidy
from tests.support.processes import begin, end
from tests.support.trained import assert_same_run, write_images

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's limits and mounts")

RUN = [*TRAIN, "--batch-size", "5", "--epochs", "2", "--out", "pieces/vae", "--checkpoint-every", "1e-6"]
CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.utime", "os.fsync"}
NEED_SPACE = {"open", "os.mkdir", "os.fsync", "os.rename"}


@dataclass(frozen=True)
class Fault:
    """Called in a process, makes its change number `number` (from 1) under its working folder fail, in one of `WAYS`.

    Each change is noted in `changes.txt`.
    """

    number: int
    way: str

    def __call__(self) -> None:
        sync.SYNC_INTERVAL_SECONDS = 0.0  # each step is saved: the same changes every time
        place, count = os.getcwd() + os.sep, 0
        notes = os.open("changes.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        fsync = os.fsync

        def look(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            if event not in CHANGES or isinstance(arguments[0], int):
                return
            if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
            path = os.path.abspath(os.fsdecode(arguments[0]))
            if not path.startswith(place) or path.endswith(".txt"):
                return
            count += 1
            os.write(notes, f"{event} {path.removeprefix(place)}\n".encode())
            if count == self.number and self.way == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            from_then_on = count > self.number > 0 and (self.way == "read-only" or event in NEED_SPACE)
            if count == self.number or (self.way in CAUSES and from_then_on):
                cause = CAUSES.get(self.way, errno.ENOSPC)
                raise OSError(cause, os.strerror(cause), path)

        def watched_fsync(descriptor: int) -> None:
            look("os.fsync", (os.readlink(f"/proc/self/fd/{descriptor}"),))
            fsync(descriptor)

        os.fsync = watched_fsync
        sys.addaudithook(look)


CAUSES = {"full": errno.ENOSPC, "read-only": errno.EROFS}  # what fails from then on
WAYS = ("fails once", *CAUSES, "killed")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with images, an undisturbed run `whole`, the list of the changes that it made, and a run to restart."""
    place = tmp_path_factory.mktemp("whole")
    write_images(place / "images")
    assert end(begin(place, [*RUN, "--epochs", "1", "--seed", "9"])) == 0, (place / "stderr.txt").read_text()
    (place / "pieces/vae").rename(place / "former")
    shutil.rmtree(place / "cache")
    assert end(begin(place, RUN, Fault(0, "fails once"))) == 0, (place / "stderr.txt").read_text()
    (place / "pieces/vae").rename(place / "whole")
    return place


def changes(place):
    return (place / "changes.txt").read_text().splitlines()


def desk(whole, restart=False):
    """An empty folder to work in; with `restart`, another run stands where this one will."""
    place = whole / "work"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    (place / "images").symlink_to(whole / "images")
    if restart:
        shutil.copytree(whole / "former", place / "pieces/vae")
        shutil.copytree(whole / "cache", place / "cache")
    return place


def fail_and_go_on(whole, number, way, restart=False):
    """Meet change `number`, look at what is left, run the same command again, and compare.

    Returns the exit status, or None where there is no change of that number.
    """
    place = desk(whole, restart)
    command = [*RUN, "--restart"] if restart else RUN
    status = end(begin(place, command, Fault(number, way)))
    if number > len(changes(place)):
        return None
    said = (place / "stderr.txt").read_text()
    about = f"{way} at {number}, {changes(place)[number - 1]}: status {status}\n{said}"
    if way == "killed":
        assert status == -signal.SIGKILL, about
    else:
        assert status in (0, 1), about
        assert "Traceback" not in said and len(said.splitlines()) <= 2, about
        assert (status == 1) == (os.strerror(CAUSES.get(way, errno.ENOSPC)) in said), about
    go_on(place, whole / "whole", about, command)
    return status


def go_on(place, whole, about, command=RUN):
    folder = place / "pieces/vae"
    require_sound(folder, None if "--restart" in command else whole)
    (place / "stderr.txt").unlink()
    assert end(begin(place, command)) == 0, about + (place / "stderr.txt").read_text()
    require_tidy(folder)
    assert_same_run(whole, folder)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["full", "killed"])
def test_a_write_that_fails_costs_no_more_than_time(whole, way):
    number = (1 + WAYS.index(way)) * len(changes(whole)) // 5
    assert fail_and_go_on(whole, number, way) is not None


@pytest.mark.soak
@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_every_write_in_turn(whole, way, restart):
    attempts = (fail_and_go_on(whole, number, way, restart) for number in itertools.count(1))
    statuses = list(itertools.takewhile(lambda status: status is not None, attempts))
    assert len(statuses) > 50
    outcomes = "" if way == "killed" else f": {statuses.count(1)} errors, {statuses.count(0)} recovered"
    print(f"{way}{', restarting' if restart else ''}: {len(statuses)} changes{outcomes}")


# Inside a file


@dataclass(frozen=True)
class LargestFile:
    """Called in a process, lets none of its files grow beyond so many bytes."""

    size: int

    def __call__(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))


def stop_at_size(whole, size):
    """Let files grow to `size` bytes only, look at what is left, and go on without the limit."""
    place = desk(whole)
    status = end(begin(place, RUN, LargestFile(size)))
    said = (place / "stderr.txt").read_text()
    assert "Traceback" not in said and len(said.splitlines()) <= 2, said
    assert (status == 1) == ("File too large" in said), said
    go_on(place, whole / "whole", said)
    return status


def sizes(whole):
    return sorted({file.stat().st_size for file in (whole / "whole").rglob("*") if file.is_file()})


@pytest.mark.soak
def test_files_stopped_at_every_size(whole):
    largest = sizes(whole)[-1]
    limits = sorted({size + step for size in sizes(whole) for step in (-1, 0)} | set(range(64, largest, largest // 50)))
    statuses = [stop_at_size(whole, limit) for limit in limits]
    print(f"{len(limits)} limits: {statuses.count(1)} errors, {statuses.count(0)} recovered")
    assert statuses[-1] == 0 and statuses.count(1) > 20


@pytest.mark.soak
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_full_at_every_size(whole, tmp_path):
    """A small disk of its own, ever less of it free."""
    libc = ctypes.CDLL(None, use_errno=True)
    needed = sum(file.stat().st_size for file in (whole / "whole").rglob("*")) // 1024
    statuses = []
    with ExitStack() as mounted:
        disk = tmp_path / "disk"
        disk.mkdir()
        kilobytes = 8 * needed
        if libc.mount(b"none", os.fsencode(disk), b"tmpfs", 0, f"size={kilobytes}k".encode()):
            pytest.skip(os.strerror(ctypes.get_errno()))
        mounted.callback(libc.umount2, os.fsencode(disk), 2)
        for free in range(0, 3 * needed, max(4, needed // 20)):
            place = desk(whole)
            for name in ("pieces", "cache"):
                shutil.rmtree(disk / name, ignore_errors=True)
                (disk / name).mkdir()
                (place / name).symlink_to(disk / name)
            filler = disk / "filler"
            filler.write_bytes(bytes(max(0, os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - 1024 * free)))
            status = end(begin(place, RUN))
            said = (place / "stderr.txt").read_text()
            assert "Traceback" not in said and len(said.splitlines()) <= 2, said
            assert (status == 1) == ("No space left on device" in said), said
            filler.unlink()
            go_on(place, whole / "whole", said)
            statuses.append(status)
    print(f"{len(statuses)} sizes of disk: {statuses.count(1)} errors, {statuses.count(0)} had room")
    assert statuses.count(0) and statuses.count(1)
