import errno
import json
import os
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from aecli.data.packs.on_the_fly import OnTheFly
from aecli.data.packs.pack import pack_images
from aecli.errors import ConfigError, OutputError
from aecli.progress import Notice, Progress
from tests.data.test_pack import run, unreadable_copies, whole

IMAGE = 3 * 16 * 16  # bytes
Usage = namedtuple("Usage", "total used free")


def sets(*letters, count=10):
    return [[whole(f"{letter}{number}.png", number) for number in range(count)] for letter in letters]


def packs(cache_folder):
    return sorted(path.name for path in cache_folder.iterdir() if not path.name.startswith("."))


def build(images, cache_folder, age):
    """Pack `images`, as if they had last been used `age` seconds ago; returns the pack's folder."""
    before = set(packs(cache_folder)) if cache_folder.exists() else set()
    run(images, cache=cache_folder)
    (key,) = set(packs(cache_folder)) - before
    grow_old(cache_folder / key, age)
    return cache_folder / key


def grow_old(pack, age):
    stamp = (pack / "index.json").stat().st_mtime - age
    os.utime(pack / "index.json", (stamp, stamp))


def allow(monkeypatch, images):
    """Let the cache hold that many images of 16 x 16."""
    monkeypatch.setenv("AECLI_CACHE_GB", repr(images * IMAGE / 1e9))


def leave_free(monkeypatch, free):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12, free() if callable(free) else free))


# The budget


def test_the_least_recently_used_packs_make_room(cache_folder, monkeypatch):
    first, second, third, fourth = sets("a", "b", "c", "d")
    old = [build(images, cache_folder, age) for images, age in ((first, 300), (second, 200), (third, 100))]
    run(unreadable_copies(first), cache=cache_folder)  # which marks it as used
    allow(monkeypatch, 30)
    run(fourth, cache=cache_folder)
    assert [pack.exists() for pack in old] == [True, False, True]
    allow(monkeypatch, 10)
    run(second, cache=cache_folder)
    assert len(packs(cache_folder)) == 1
    assert run(unreadable_copies(second), cache=cache_folder)[1] == []


def test_nothing_is_dropped_within_the_budget_or_without_building(cache_folder, monkeypatch):
    first, second = sets("a", "b")
    build(first, cache_folder, 300)
    allow(monkeypatch, 20)
    run(second, cache=cache_folder)
    allow(monkeypatch, 1)
    assert run(unreadable_copies(first), cache=cache_folder)[1] == []
    assert len(packs(cache_folder)) == 2


def test_a_set_beyond_the_budget_is_decoded_on_the_fly_and_drops_nothing(cache_folder, monkeypatch):
    (first,), (large,) = sets("a"), sets("b", count=21)
    kept = build(first, cache_folder, 300)
    allow(monkeypatch, 20)
    expected = np.array(run(large)[0].images)
    pack, reports = run(large, cache=cache_folder)
    assert isinstance(pack.images, OnTheFly)
    assert pack.names == [image.name for image in large]
    np.testing.assert_array_equal(pack.images[np.arange(21)], expected)
    (notice,) = reports
    assert isinstance(notice, Notice)
    assert "AECLI_CACHE_GB" in notice.text
    assert packs(cache_folder) == [kept.name]


def test_a_budget_of_nothing_writes_nothing(cache_folder, monkeypatch):
    monkeypatch.setenv("AECLI_CACHE_GB", "0")
    (images,) = sets("a")
    assert isinstance(run(images, cache=cache_folder)[0].images, OnTheFly)
    assert not cache_folder.exists()


@pytest.mark.parametrize("value", ["much", "-1", "inf", "nan", "5 GB"])
def test_a_budget_that_is_no_number(cache_folder, monkeypatch, value):
    monkeypatch.setenv("AECLI_CACHE_GB", value)
    (images,) = sets("a")
    with pytest.raises(ConfigError, match=f"AECLI_CACHE_GB={value}: not a number"):
        run(images, cache=cache_folder)
    run(images, cache="off")


def test_the_free_disk_bounds_the_cache_too(cache_folder, monkeypatch):
    first, second, large = *sets("a", "b"), sets("c", count=30)[0]
    oldest, newer = build(first, cache_folder, 300), build(second, cache_folder, 200)
    leave_free(monkeypatch, lambda: 29 * IMAGE - len(packs(cache_folder)) * 10 * IMAGE)
    pack, reports = run(unreadable_copies(large), cache=cache_folder)  # 9 images free, 20 to be dropped
    assert isinstance(pack.images, OnTheFly)
    assert "free" in reports[0].text and str(cache_folder) in reports[0].text
    assert oldest.exists() and newer.exists()
    run(sets("d")[0], cache=cache_folder)
    assert not oldest.exists()
    assert newer.exists()


def test_a_file_system_that_states_no_free_space(cache_folder, monkeypatch):
    leave_free(monkeypatch, 0)
    (images,) = sets("a")
    assert isinstance(run(images, cache=cache_folder)[0].images, np.memmap)


def test_what_is_no_readable_pack_goes_and_what_is_no_pack_stays(cache_folder):
    damaged, older = (cache_folder / (digit * 64) for digit in "01")
    others = [cache_folder / name for name in ("f" * 63, "holiday", "g" * 64)]
    for folder in (damaged, older, *others):
        folder.mkdir(parents=True)
        (folder / "images.u8").write_bytes(b"x")
    (older / "index.json").write_text(json.dumps({"schema": 1, "names": ["a.png"], "skipped": {}}))
    newer = build(sets("a")[0], cache_folder, 0)
    index = json.loads((newer / "index.json").read_text())
    (newer / "index.json").write_text(json.dumps({**index, "schema": 10**6}))
    run(sets("b")[0], cache=cache_folder)
    assert not damaged.exists()
    assert not older.exists()
    assert newer.exists()
    assert all(folder.exists() for folder in others)


def test_a_dropped_pack_stays_readable_where_it_is_mapped(cache_folder, monkeypatch):
    first, second = sets("a", "b")
    expected = np.array(run(first)[0].images)
    mapped = run(first, cache=cache_folder)[0].images
    allow(monkeypatch, 10)
    run(second, cache=cache_folder)
    assert len(packs(cache_folder)) == 1
    if sys.platform != "win32":
        np.testing.assert_array_equal(mapped, expected)


def test_a_pack_that_can_not_be_dropped_stays(cache_folder, monkeypatch):
    first, second = sets("a", "b")
    pack = build(first, cache_folder, 300)
    allow(monkeypatch, 10)
    rename = Path.rename

    def refuse(self, target):
        if self == pack:
            raise PermissionError(errno.EACCES, "in use")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    assert isinstance(run(second, cache=cache_folder)[0].images, OnTheFly)
    assert packs(cache_folder) == [pack.name]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.EIO])
def test_marking_as_used_fails_quietly_on_caches_of_others_only(cache_folder, monkeypatch, number):
    (images,) = sets("a")
    run(images, cache=cache_folder)

    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "utime", refuse)
    if number == errno.EIO:
        with pytest.raises(OutputError):
            run(images, cache=cache_folder)
    else:
        assert run(unreadable_copies(images), cache=cache_folder)[1] == []


# In memory


def test_a_set_beyond_half_of_the_memory_is_decoded_on_the_fly(monkeypatch):
    (images,) = sets("a")
    expected = np.array(run(images)[0].images)
    monkeypatch.setattr("aecli.data.packs.pack._available_memory", lambda: 2.0 * 10 * IMAGE)
    assert isinstance(run(images)[0].images, np.ndarray)
    monkeypatch.setattr("aecli.data.packs.pack._available_memory", lambda: 2.0 * 10 * IMAGE - 1)
    pack, reports = run(images)
    assert isinstance(pack.images, OnTheFly)
    assert "memory" in reports[0].text
    np.testing.assert_array_equal(pack.images[np.arange(10)], expected)


@pytest.mark.skipif(sys.platform != "linux", reason="known on Linux only")
def test_available_memory_is_that_of_the_machine():
    from aecli.data.packs.pack import _available_memory

    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 2**20 < _available_memory() <= pages


# Progress


def test_progress_is_reported_while_it_is_built_and_notices_only_where_there_is_something_to_say(cache_folder):
    (images,) = sets("a")
    reports = list(pack_images(images, 16, "squash", str(cache_folder), 1))
    assert {type(report) for report in reports} == {Progress}
