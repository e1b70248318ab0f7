"""Locks between processes: who holds one, and what a dead holder leaves."""

import errno
import os
import subprocess
import sys

import pytest

from aecli.storage.locks import Lock, is_alive, is_dead, this_process

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX locks")
HOST = this_process().rpartition("-")[0]


@pytest.fixture
def dead():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return str(process.pid)


def test_one_holder_at_a_time_and_it_is_named(tmp_path):
    first, second = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert first.take() and first.excludes
    assert not second.take() and not second.excludes
    assert second.holder() == f"process {os.getpid()} on {HOST}" and second.is_ours
    first.close()
    assert not (tmp_path / "lock").exists()
    assert second.take()
    second.close()


def test_a_holder_that_has_not_signed_the_file_yet_is_not_named(tmp_path):
    import fcntl

    with open(tmp_path / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        lock = Lock(tmp_path / "lock")
        assert not lock.take() and lock.holder() == "another process"
        file.write("host-a-77")
        file.flush()
        assert not lock.take() and lock.holder() == "process 77 on host-a" and not lock.is_ours


def test_a_lock_left_by_a_dead_process_is_free(tmp_path, dead):
    (tmp_path / "lock").write_text(f"{HOST}-{dead}")
    lock = Lock(tmp_path / "lock", by_name=True)
    assert lock.take()
    assert (tmp_path / "lock").read_text() == this_process()
    lock.close()


@pytest.mark.parametrize(("owner", "is_free"), [("living", False), ("dead", True), ("elsewhere", True), ("", True)])
def test_without_locks_in_the_file_system_the_name_decides(tmp_path, monkeypatch, dead, owner, is_free):
    def no_locks(*_arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    named = {"living": this_process(), "dead": f"{HOST}-{dead}", "elsewhere": f"other-{HOST}-1", "": ""}[owner]
    (tmp_path / "lock").write_text(named)
    lock = Lock(tmp_path / "lock", by_name=True)
    assert lock.take() == is_free and not lock.excludes
    lock.close()
    assert (tmp_path / "lock").exists() != is_free


def test_what_stands_in_its_place_is_neither_followed_nor_waited_for(tmp_path):
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError):
        Lock(tmp_path / "link").take()
    pipe = Lock(tmp_path / "pipe")
    with pytest.raises(OSError):
        pipe.take()
    assert (tmp_path / "mine").read_text() == "precious"


def test_the_living_and_the_dead(dead):
    assert is_alive(HOST, str(os.getpid())) and not is_dead(HOST, str(os.getpid()))
    assert is_dead(HOST, dead) and not is_alive(HOST, dead)
    for host, pid in (("elsewhere", dead), (HOST, "tmp"), (HOST, "")):
        assert not is_alive(host, pid) and not is_dead(host, pid)
    assert is_dead(HOST, "9" * 30)
