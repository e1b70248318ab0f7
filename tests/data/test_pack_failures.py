import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from aecli.data.packs.pack import pack_images
from aecli.errors import DataError, OutputError
from tests.data.test_pack import run, unreadable_copies, whole


@pytest.mark.parametrize("damage", ["short", "long", "no bytes", "no index", "no json", "other json", "other count"])
def test_a_damaged_pack_is_built_again(images, cache_folder, damage):
    first, _ = run(images, cache=cache_folder)
    expected = np.array(first.images)
    del first
    (key,) = cache_folder.iterdir()
    data, index = key / "images.u8", key / "index.json"
    if damage in ("short", "long"):
        data.write_bytes((data.read_bytes() + b"x")[: None if damage == "long" else -2])
    elif damage == "no bytes":
        data.unlink()
    elif damage == "no index":
        index.unlink()
    else:
        other = {**json.loads(index.read_text()), "images": 2}
        index.write_text({"no json": '{"images"', "other json": "[1]", "other count": json.dumps(other)}[damage])
    again, reports = run(images, cache=cache_folder)
    assert reports
    np.testing.assert_array_equal(again.images, expected)
    assert [path.name for path in cache_folder.iterdir()] == [key.name]
    assert run(unreadable_copies(images), cache=cache_folder)[1] == []


def test_closing_leaves_nothing_behind(images, cache_folder):
    steps = pack_images(images, 16, "squash", str(cache_folder), 1)
    next(steps)
    assert len(list(cache_folder.glob(".building-*"))) == 1
    steps.close()
    assert list(cache_folder.iterdir()) == []


def test_another_process_that_was_first_wins(images, cache_folder, tmp_path):
    run(images, cache=tmp_path / "theirs")
    (theirs,) = (tmp_path / "theirs").iterdir()
    steps = pack_images(images, 16, "squash", str(cache_folder), 1)
    next(steps)
    shutil.copytree(theirs, cache_folder / theirs.name)
    stamp = (cache_folder / theirs.name / "images.u8").stat().st_ino
    with pytest.raises(StopIteration) as end:
        while True:
            next(steps)
    assert end.value.value.names == [image.name for image in images]
    assert (cache_folder / theirs.name / "images.u8").stat().st_ino == stamp
    assert [path.name for path in cache_folder.iterdir()] == [theirs.name]


# A cache that can't be written


def test_cache_that_is_a_file(images, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"(?s)file.*--cache DIR.*--cache off"):
        run(images, cache=tmp_path / "file")


def test_full_disk(images, cache_folder, monkeypatch):
    def refuse(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OutputError, match=r"No space left[^\n]*\nhint: .*--cache off"):
        run(images, cache=cache_folder)
    assert list(cache_folder.iterdir()) == []


def test_memory_that_does_not_suffice(images, monkeypatch):
    def refuse(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(np, "empty", refuse)
    with pytest.raises(DataError, match=r"--cache off[^\n]*\nhint: .*--cache DIR"):
        run(images)


def test_pack_is_read_through_the_map_not_into_memory(cache_folder):
    images = [whole(f"{number}.png", number) for number in range(4)]
    pack, _ = run(images, size=64, cache=cache_folder)
    (key,) = cache_folder.iterdir()
    assert Path(pack.images.filename) == key / "images.u8"
    assert pack.images.shape == (4, 3, 64, 64)
