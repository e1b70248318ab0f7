import sys

import numpy as np
import pytest
from PIL import Image

from aecli.data.image_ref import ImageRef
from aecli.data.packs import pack as pack_module
from aecli.data.packs.pack import Pack, pack_images
from aecli.data.sources.registry import list_images
from aecli.errors import DataError
from aecli.progress import Progress
from tests.support.data import finish
from tests.support.images import encoded, picture


def run(images, size=16, how="squash", cache="off", workers=2) -> tuple[Pack, list[Progress]]:
    return finish(pack_images(images, size, how, str(cache), workers))


def unreadable():
    raise AssertionError("an image was read")


def unreadable_copies(images):
    return [ImageRef(i.name, i.group, i.fingerprint, unreadable, i.revision) for i in images]


def by_hand(folder, names, size=16):
    pictures = [Image.open(folder / name).resize((size, size), Image.Resampling.BILINEAR) for name in names]
    return np.stack([np.asarray(image).transpose(2, 0, 1) for image in pictures])


def broken(name):
    return ImageRef(name, name, "broken", lambda: b"not an image")


def whole(name, seed=0):
    return ImageRef(name, name, "", lambda: encoded(picture(seed=seed)))


def test_packed_pixels_in_order_on_disk_and_in_memory(images, image_folder, cache_folder):
    folder, names = image_folder(), ["a.png", "b.png", "sub [1]\n/c.png"]
    for where in (cache_folder, "off"):
        pack, reports = run(images, cache=where)
        assert pack.names == names
        assert pack.skipped == {}
        assert pack.images.dtype == np.uint8
        np.testing.assert_array_equal(pack.images, by_hand(folder, names))
        assert not pack.images.flags.writeable
        assert reports[-1] == Progress("decoding", 3, 3)
    assert isinstance(run(images, cache=cache_folder)[0].images, np.memmap)
    (key,) = cache_folder.iterdir()
    assert {path.name for path in key.iterdir()} == {"images.u8", "index.json"}
    stored = np.fromfile(key / "images.u8", np.uint8).reshape(3, 16, 16, 3)
    np.testing.assert_array_equal(stored.transpose(0, 3, 1, 2), by_hand(folder, names))


def test_crop_keeps_the_middle(image_folder, cache_folder):
    images = list_images(str(image_folder("a.png", height=32, width=64)))
    pack, _ = run(images, how="crop", cache=cache_folder)
    shrunk = np.asarray(Image.open(image_folder() / "a.png").resize((32, 16), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(pack.images[0], shrunk[:, 8:24].transpose(2, 0, 1))


def test_a_pack_that_is_found_reads_no_image_and_reports_nothing(images, cache_folder):
    first, _ = run(images, cache=cache_folder)
    again, reports = run(unreadable_copies(images), cache=cache_folder)
    assert reports == []
    assert again.names == first.names
    np.testing.assert_array_equal(again.images, first.images)


def test_auto_is_the_users_cache_folder_and_off_writes_nothing(images, own_cache):
    packs = own_cache / "aecli" / "packs"
    before = set(packs.iterdir()) if packs.exists() else set()
    run(images, cache="off")
    assert (set(packs.iterdir()) if packs.exists() else set()) == before
    if sys.platform == "linux":
        run(images, cache="auto")
        assert len(set(packs.iterdir()) - before) == 1


def test_key_depends_on_whatever_changes_the_pixels(images, cache_folder, monkeypatch):
    def packs():
        return len(list(cache_folder.iterdir()))

    run(images, cache=cache_folder)
    run(images, size=32, cache=cache_folder)
    run(images, how="crop", cache=cache_folder)
    run(images[:2], cache=cache_folder)
    assert packs() == 4
    for field in ("fingerprint", "revision"):
        values = {"name": "a.png", "group": "a.png", "fingerprint": "", "load": images[0].load, "revision": ""}
        run([ImageRef(**{**values, field: "changed"}), *images[1:]], cache=cache_folder)
    assert packs() == 6
    monkeypatch.setattr("PIL.__version__", "0.0")
    run(images, cache=cache_folder)
    assert packs() == 7


def test_a_changed_file_is_decoded_again(images, image_folder, cache_folder):
    run(images, cache=cache_folder)
    (image_folder() / "a.png").write_bytes(encoded(picture(30, 30, seed=9)))
    pack, _ = run(list_images(str(image_folder())), cache=cache_folder)
    np.testing.assert_array_equal(pack.images[0], by_hand(image_folder(), ["a.png"])[0])


# Broken images


@pytest.mark.parametrize("where", ["off", "disk"])
def test_one_broken_in_a_hundred_is_skipped_and_two_are_too_many(cache_folder, where):
    where = cache_folder if where == "disk" else "off"
    images = [whole(f"{number:03d}.png", number) for number in range(100)]
    images[40] = broken("040.png")
    pack, _ = run(images, cache=where)
    assert list(pack.skipped) == ["040.png"]
    assert "not a PNG" in pack.skipped["040.png"]
    assert "040.png" not in pack.names
    assert pack.images.shape == (99, 3, 16, 16)
    direct, _ = run([images[41]])
    np.testing.assert_array_equal(pack.images[40], direct.images[0])
    if where == cache_folder:
        again, reports = run(unreadable_copies(images), cache=cache_folder)
        assert (again.skipped, reports) == (pack.skipped, [])
    images[41] = broken("041.png")
    with pytest.raises(DataError, match=r"2 of 100 images.*more than 1%.*040\.png: .*041\.png"):
        run(images, cache=where)
    assert cache_folder.exists() == (where == cache_folder)
    assert not list(cache_folder.glob(".building-*"))


def test_many_broken_ones_are_counted_and_the_first_few_named():
    with pytest.raises(DataError) as caught:
        run([broken(f"{number}.png") for number in range(9)])
    message = str(caught.value)
    assert "9 of 9" in message
    assert "4.png" in message
    assert "5.png" not in message
    assert "and 4 more" in message


def test_a_picture_that_can_not_be_cropped_counts_as_broken():
    thread = ImageRef("thread.png", "thread.png", "", lambda: encoded(np.zeros((1, 30_000, 3), dtype=np.uint8)))
    with pytest.raises(DataError, match=r"thread\.png: 30000x1 is too elongated"):
        run([thread, whole("a.png")], size=256, how="crop")


def test_no_images_at_all(cache_folder):
    pack, reports = run([], cache=cache_folder)
    assert (pack.names, pack.skipped, reports) == ([], {}, [])
    assert pack.images.shape == (0, 3, 16, 16)
    assert not cache_folder.exists()


# Progress


def test_reports_are_few_and_end_with_the_total(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(pack_module.time, "monotonic", lambda: now[0])
    content = encoded(picture())

    def load():
        now[0] += 0.01
        return content

    images = [ImageRef(f"{number:03d}.png", "", "", load) for number in range(30)]
    _, reports = run(images, workers=1)
    assert len(reports) <= 8  # 0.3 seconds at 20 a second, the first and the last
    done = [report.done for report in reports]
    assert done == sorted(set(done))
    assert reports[-1] == Progress("decoding", 30, 30)
