"""Writing: the old file or the new one, whole, whatever fails."""

import os
import subprocess
import sys

import pytest

from aecli.errors import OutputError
from aecli.progress import ignore
from aecli.storage.atomic_files import atomic_write, write_bytes
from aecli.storage.locks import this_process
from aecli.storage.outputs import check_writable_file, prepare_output_folder


def test_a_new_file_and_its_folders(tmp_path):
    write_bytes(tmp_path / "a" / "b" / "file", b"content")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"content"
    assert os.listdir(tmp_path / "a" / "b") == ["file"]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells which file is flushed")
def test_content_is_on_the_disk_before_it_has_the_name_and_names_are_before_the_call_returns(tmp_path, monkeypatch):
    """What a power cut asks for: neither an empty file under the name, nor a folder without it."""
    done = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor):
        done.append(("flushed", os.readlink(f"/proc/self/fd/{descriptor}"), os.fstat(descriptor).st_size))
        fsync(descriptor)

    def watched_replace(old, new):
        done.append(("named", str(new), os.stat(old).st_size))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    write_bytes(tmp_path / "a" / "b" / "file", b"content")
    assert [(what, path) for what, path, _ in done[:2]] == [
        ("flushed", str(tmp_path / "a")),
        ("flushed", str(tmp_path)),
    ]
    (flushed, temporary, size), named, (last, folder, _) = done[2:]
    assert (flushed, size, temporary.endswith("/file")) == ("flushed", 7, True)
    assert named == ("named", str(tmp_path / "a" / "b" / "file"), 7)
    assert (last, folder) == ("flushed", str(tmp_path / "a" / "b"))


@pytest.mark.parametrize("kind", ["pipe", "dangling link"])
def test_what_is_no_file_is_not_replaced(tmp_path, kind):
    path = tmp_path / "out.png"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "absent")
    with pytest.raises(OutputError, match="out.png is not a regular file"):
        check_writable_file(path, "--out")


def test_what_dead_processes_of_this_host_left_goes_and_the_rest_stays(tmp_path):
    host, _, pid = this_process().rpartition("-")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = {f".aecli-{host}-{dead.pid}-1.tmp": False, f".aecli-{host}-{pid}-1.tmp": True,
             f".aecli-else-where-{dead.pid}-1.tmp": True, "mine.tmp": True}  # fmt: skip
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / "mine.tmp" / next(iter(names))).mkdir()
    notices = []
    prepare_output_folder(tmp_path, True, notices.append)
    assert "already holds 1 files" in notices[0].text, "what aecli keeps for a while is nobody's"
    assert list((tmp_path / "mine.tmp").iterdir()) == []
    assert {name: (tmp_path / name).exists() for name in names} == names


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch, failing):
    file = tmp_path / "file"
    file.write_bytes(b"old")

    def fail(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OutputError, match="file.*: No space left on device"):
        write_bytes(file, b"new")
    monkeypatch.undo()
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_an_exception_while_writing_leaves_the_old_file(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_write(file) as stream:
        stream.write(b"half of the ne")
        raise KeyboardInterrupt
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_path_under_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file is not a folder"):
        write_bytes(tmp_path / "file" / "below", b"")
    with pytest.raises(OutputError, match="file can't be written: .*file is not a folder"):
        prepare_output_folder(tmp_path / "file", True, ignore)


def test_a_folder_that_holds_files_is_claimed_only_on_the_users_word(tmp_path):
    notices = []
    prepare_output_folder(tmp_path / "new", False, notices.append)
    assert not notices
    (tmp_path / "new" / "picture.png").touch()
    with pytest.raises(OutputError, match="--overwrite"):
        prepare_output_folder(tmp_path / "new", False, ignore)
    prepare_output_folder(tmp_path / "new", True, notices.append)
    assert len(notices) == 1
