"""Several processes at one cache, some of which die."""

import errno
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from aecli.data.image_ref import content_key
from aecli.data.packs.pack import pack_images
from aecli.data.sources.registry import list_images
from aecli.progress import Notice, Progress
from aecli.storage.locks import Lock
from tests.data.test_pack import run, unreadable_copies

needs_locks = pytest.mark.skipif(sys.platform == "win32", reason="no locks here: whoever is first wins")
DAY = 24 * 3600

# Prints a line for every report, and how many images this process itself decoded.
BUILD = """
import sys, time
from aecli.data.packs import pack
from aecli.data.sources.registry import list_images
decode, decoded = pack.decode_fitted, []
def slowly(image, *options):
    time.sleep(float(sys.argv[3]))
    decoded.append(image.name)
    return decode(image, *options)
pack.decode_fitted = slowly
for report in pack.pack_images(list_images(sys.argv[1]), 16, "squash", sys.argv[2], 1):
    print(report, flush=True)
print(len(decoded), "decoded")
"""


def start(folder, cache_folder, seconds=0.0):
    arguments = [sys.executable, "-c", BUILD, str(folder), str(cache_folder), str(seconds)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def folder(image_folder):
    return image_folder(*(f"{number:02d}.png" for number in range(12)))


def require_one_whole_pack(folder, cache_folder):
    assert len(list(cache_folder.iterdir())) == 1
    images = list_images(str(folder))
    pack, reports = run(unreadable_copies(images), cache=cache_folder)
    assert reports == []
    np.testing.assert_array_equal(pack.images, run(images)[0].images)


# The lock


@needs_locks
def test_a_lock_file_deleted_by_its_holder_while_another_opens_it_locks_nothing(tmp_path, monkeypatch):
    import fcntl

    flock, first, second = fcntl.flock, Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert first.take()

    def just_too_late(file, operation):
        first.close()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", just_too_late)
    assert second.take() and second.excludes
    monkeypatch.undo()
    assert not Lock(tmp_path / "lock").take()
    second.close()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_lock_file_of_another_user_or_on_a_read_only_disk_stops_nobody(tmp_path, monkeypatch, number):
    def refuse(path, flags, mode):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    lock = Lock(tmp_path / "lock")
    assert lock.take() and not lock.excludes
    lock.close()


# Packs


@pytest.mark.slow
def test_processes_at_once_end_with_one_pack_built_once(folder, cache_folder):
    processes = [start(folder, cache_folder, 0.05) for _ in range(2)]
    said = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    if sys.platform != "win32":
        assert sorted(text.splitlines()[-1] for text in said) == ["0 decoded", "12 decoded"]
    require_one_whole_pack(folder, cache_folder)


def test_without_locks_both_build_and_one_pack_stays(folder, cache_folder, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    images = list_images(str(folder))
    first, second = (pack_images(images, 16, "squash", str(cache_folder), 1) for _ in range(2))
    assert isinstance(next(first), Progress)
    assert isinstance(next(second), Progress)
    assert len(list(cache_folder.glob(".building-*"))) == 2
    for steps in (first, second):
        for _ in steps:
            pass
    require_one_whole_pack(folder, cache_folder)


@needs_locks
def test_the_second_tells_that_it_waits_and_how_far_the_first_is(folder, cache_folder):
    images = list_images(str(folder))
    first = pack_images(images, 16, "squash", str(cache_folder), 1)
    next(first)
    second = pack_images(unreadable_copies(images), 16, "squash", str(cache_folder), 1)
    notice, progress = next(second), next(second)
    assert isinstance(notice, Notice) and "another process" in notice.text
    assert isinstance(progress, Progress) and progress.total == 12 and progress.done <= 12
    other = pack_images(images[:5], 16, "squash", str(cache_folder), 1)
    assert isinstance(next(other), Progress)  # other images wait for nobody
    for _ in (*first, *other, *second):
        pass
    assert not list(cache_folder.glob(".*"))


@needs_locks
def test_a_killed_build_is_cleared_away_and_done_again(folder, cache_folder):
    process = start(folder, cache_folder, 0.2)
    process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=600)
    assert len(list(cache_folder.glob(".building-*"))) == 1
    run(list_images(str(folder)), cache=cache_folder)
    require_one_whole_pack(folder, cache_folder)


@needs_locks
def test_one_that_waits_takes_over_when_the_builder_is_killed(folder, cache_folder):
    builder = start(folder, cache_folder, 0.5)
    builder.stdout.readline()
    steps = pack_images(list_images(str(folder)), 16, "squash", str(cache_folder), 1)
    assert isinstance(next(steps), Notice)
    os.kill(builder.pid, signal.SIGKILL)
    builder.communicate(timeout=600)
    assert list(steps)[-1] == Progress("decoding", 12, 12)
    require_one_whole_pack(folder, cache_folder)


@needs_locks
def test_what_others_are_building_stays_and_what_they_left_goes(folder, cache_folder, monkeypatch):
    images = list_images(str(folder))
    theirs = pack_images(images[:6], 16, "squash", str(cache_folder), 1)
    next(theirs)
    (growing,) = cache_folder.glob(".building-*")
    left, dropped = cache_folder / f".building-{'0' * 64}-1", cache_folder / ".dropped-1"
    for leftover in (left, dropped):
        leftover.mkdir()
        (leftover / "images.u8").write_bytes(b"x")
    run(images, cache=cache_folder)
    assert growing.exists()
    assert not left.exists()
    assert not dropped.exists()
    for _ in theirs:
        pass
    assert not list(cache_folder.glob(".*"))


def test_without_locks_leftovers_go_after_a_day(folder, cache_folder, monkeypatch):
    monkeypatch.setattr("aecli.storage.locks.Lock.take", lambda lock: True)
    images = list_images(str(folder))
    mine = content_key(images[:1])
    old, new, growing, own = (cache_folder / f".building-{name}" for name in ("old", "new", "growing", f"{mine}-1"))
    for leftover in (old, new, growing, own):
        leftover.mkdir(parents=True)
        (leftover / "images.u8").write_bytes(b"x")
    long_ago = time.time() - 1.1 * DAY
    os.utime(old / "images.u8", (long_ago, long_ago))
    for leftover in (old, growing):
        os.utime(leftover, (long_ago, long_ago))
    run(images, cache=cache_folder)
    assert [leftover.exists() for leftover in (old, new, growing, own)] == [False, True, True, True]
