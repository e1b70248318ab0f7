"""Writing: the old file or the new one, whole, whatever fails."""

import os

import pytest

from aecli.errors import OutputError
from aecli.files import atomic_write, claim_folder, write_bytes


def test_a_new_file_and_its_folders(tmp_path):
    write_bytes(tmp_path / "a" / "b" / "file", b"content")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"content"
    assert os.listdir(tmp_path / "a" / "b") == ["file"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch, failing):
    file = tmp_path / "file"
    file.write_bytes(b"old")

    def fail(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OutputError, match="file can't be written: No space left on device"):
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


def test_a_path_under_a_file_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file is no folder"):
        write_bytes(tmp_path / "file" / "below", b"")
    with pytest.raises(OutputError, match="can't be used as a folder"):
        claim_folder(tmp_path / "file", overwrite=True)


def test_a_folder_that_holds_files_is_claimed_only_on_the_users_word(tmp_path):
    assert claim_folder(tmp_path / "new", overwrite=False) == 0
    (tmp_path / "new" / "picture.png").touch()
    with pytest.raises(OutputError, match="--overwrite"):
        claim_folder(tmp_path / "new", overwrite=False)
    assert claim_folder(tmp_path / "new", overwrite=True) == 1
