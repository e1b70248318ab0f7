"""Small files that would take a machine: refused before they are decoded, or decoded in bounds."""

import struct
import threading
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from aecli.data.decoding import limits
from aecli.data.decoding.decode import decode, decode_fitted, image_size
from aecli.data.decoding.limits import MemoryBudget
from aecli.errors import DataError
from tests.support.data import fail_to_decode, image_ref
from tests.support.images import encoded, picture
from tests.support.raw_images import bmp, hand_made_png, png_chunk, tiff, tiff_tags


def segment(marker, data):
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def refuse(content, *words):
    """Refused at once, by the size too."""
    began = time.monotonic()
    fail_to_decode(content, *words)
    with pytest.raises(DataError):
        image_size(image_ref(content))
    assert time.monotonic() - began < 3


# PNG


def test_sides_beyond_any_picture_are_refused():
    for width, height in ((50_000, 50_000), (2**28, 1), (1, 2**28), (2**31 - 1, 2**31 - 1)):
        refuse(hand_made_png(width, height, 8, 0, []), f"{width}x{height}")
    assert decode(image_ref(hand_made_png(2**17, 1, 8, 0, [bytes(2**17)]))).pixels.shape == (1, 2**17, 3)
    assert decode(image_ref(hand_made_png(1, 1, 8, 0, [b"\7"]))).pixels.tolist() == [[[7, 7, 7]]]


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_notes_that_inflate_hugely_are_refused(kind):
    bomb = zlib.compress(bytes(2**24), 9)
    start = {b"zTXt": b"a\0\0", b"iTXt": b"a\0\1\0\0\0", b"iCCP": b"a\0\0"}[kind]
    refuse(hand_made_png(4, 1, 8, 0, [bytes(4)], png_chunk(kind, start + bomb)), "Decompressed data too large")


def test_notes_of_many_values_are_refused_not_turned_into_objects():
    count = 600_000
    exif = tiff({0x0112: (5, count, bytes(8 * count))})
    refuse(hand_made_png(4, 1, 8, 0, [bytes(4)], png_chunk(b"eXIf", exif)), "EXIF", str(limits.EXIF_LIMIT))


# JPEG


def jpeg_with(parts, before_pixels=True):
    content = encoded(picture(), "JPEG")
    place = 2 if before_pixels else content.rindex(b"\xff\xd9")
    return content[:place] + parts + content[place:]


def test_a_jpeg_of_endless_notes_is_refused():
    refuse(jpeg_with(20_000 * segment(0xE1, b"Exif\0\0II*\0")), "segments of EXIF")
    assert decode(image_ref(jpeg_with(90 * segment(0xE1, b"Exif\0\0")))).pixels.shape == (24, 32, 3)
    depth_map = 400 * segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(1000))  # as phones write them
    assert decode(image_ref(jpeg_with(depth_map))).pixels.shape == (24, 32, 3)


def test_a_jpeg_of_endless_scans_is_refused_and_pictures_behind_it_do_not_count():
    content = encoded(picture(), "JPEG", progressive=True)
    scan = content[content.rindex(b"\xff\xda") : -2]
    refuse(content[:-2] + 200 * scan + b"\xff\xd9", "100 scans")
    refuse(content[:-2] + segment(0xFE, b"\xff\xd9") + 200 * scan + b"\xff\xd9", "100 scans")
    assert decode(image_ref(content + 50 * content + 200 * b"\xff\xda")).pixels.shape == (
        24,
        32,
        3,
    )  # a film behind a photograph


def test_an_end_before_the_pixels_hides_nothing():
    refuse(jpeg_with(b"\xff\xd9" + 200 * segment(0xE1, b"Exif\0\0")), "segments of EXIF")


# TIFF


def test_tags_of_endless_values_are_refused_whatever_their_type():
    for kind in (1, 3, 4):
        size = {1: 1, 3: 2, 4: 4}[kind]
        offsets = (kind, 300_000, bytes(size * 300_000))
        refuse(tiff(tiff_tags(8, 8) | {273: offsets}, bytes(64)), str(limits.VALUE_LIMIT))
    description = {270: (2, 300_001, b"x" * 300_000 + b"\0")}
    content = tiff(tiff_tags(8, 8, t273=8, t278=8, t279=64) | description, bytes(64))
    assert decode(image_ref(content)).pixels.shape == (8, 8, 3)


def test_endless_values_in_a_directory_below_are_refused_too():
    count = 300_000
    below = struct.pack("<HHHIII", 1, 33434, 5, count, 26, 0) + bytes(8 * count)
    refuse(tiff(tiff_tags(8, 8, t273=8, t278=8, t279=64, t34665=8), below), str(limits.VALUE_LIMIT))
    itself = struct.pack("<HHHIII", 1, 34665, 4, 1, 8, 0)
    assert image_size(image_ref(tiff(tiff_tags(8, 8, t273=8, t278=8, t279=64, t34665=8), itself + bytes(64)))) == (8, 8)


def test_strips_that_lie_over_each_other_are_refused():
    over = tiff_tags(64, 64, t273=[8 + 5000 * i for i in range(20)], t278=63)
    refuse(tiff(over, bytes(110_000)), "more than 8 times")
    close = tiff_tags(64, 64, t273=[8 + i for i in range(8)], t278=8)
    refuse(tiff(close, bytes(600)), "overlap in the file")
    shared = tiff_tags(64, 64, t273=[8] * 8, t278=8)  # as programs write pictures that are blank in parts
    assert decode(image_ref(tiff(shared, bytes(512)))).pixels.shape == (64, 64, 3)


def test_strips_of_a_size_that_is_a_fraction_are_refused():
    for numerator, denominator in ((0, 0), (8, 1), (17, 2)):
        tags = tiff_tags(16, 16, t273=[8, 136]) | {278: (5, 1, struct.pack("<II", numerator, denominator))}
        refuse(tiff(tags, bytes(264)), "strips of fractional size")


def test_a_tile_much_larger_than_the_picture_is_refused():
    tile = zlib.compress(bytes(2**20))
    for side, is_good in ((1024, True), (2**15, False)):
        tags = tiff_tags(8, 8, t259=8, t322=side, t323=side, t324=8, t325=len(tile))
        if is_good:
            assert decode(image_ref(tiff(tags, tile))).pixels.shape == (8, 8, 3)
        else:
            refuse(tiff(tags, tile), "32768x32768", "larger than the picture")


def test_what_libtiff_and_pillow_print_of_damage_reaches_no_terminal(capfd):
    for coding in (4, 5, 7, 8):
        tags = tiff_tags(64, 64, t259=coding, t273=8, t278=64, t279=600)
        try:
            decode(image_ref(tiff(tags, b"\x1b[31m\n" * 100)))
        except DataError as error:
            assert str(error).isprintable()
    fail_to_decode(tiff(tiff_tags(8, 8, t273=8, t277=9000), bytes(64)), "9000 channels")
    assert capfd.readouterr().err == ""


# BMP


def test_a_bmp_of_endless_runs_is_refused():
    refuse(bmp(8, 1, b"\1\1\0\0" * 100, 16384, 16384), "16384x16384", "run-length")
    assert decode(image_ref(bmp(8, 1, b"\x08\1\0\0" * 8 + b"\0\1"))).pixels.shape == (8, 8, 3)


# Memory


def test_out_of_memory_in_any_step_names_the_image(monkeypatch):
    def refuse(*_, **__):
        raise MemoryError

    image = image_ref(encoded(picture()))
    for step in ("load", "resize"):
        with monkeypatch.context() as patch:
            patch.setattr(Image.Image, step, refuse)
            with pytest.raises(DataError, match=r"a \[1\]\.png: not enough memory"):
                decode_fitted(image, 8, "squash")


def test_large_pictures_are_converted_by_the_band_to_the_same_pixels(monkeypatch):
    rgba = np.dstack([picture(50, 40), picture(50, 40, 3)[:, :, 0]])
    wide = picture(50, 40)[:, :, 0].astype(np.uint16) * 257
    floats = picture(50, 40)[:, :, 0].astype(np.float32) / 255
    contents = [encoded(rgba), encoded(wide), encoded(floats, "TIFF"), encoded(picture(50, 40), transparency=(9, 9, 9))]
    contents.append(encoded(Image.fromarray(rgba).convert("LA")))
    whole = [decode(image_ref(content)).pixels for content in contents]
    monkeypatch.setattr("aecli.data.decoding.limits._BAND_PIXELS", 100)
    for content, pixels in zip(contents, whole, strict=True):
        np.testing.assert_array_equal(decode(image_ref(content)).pixels, pixels)


def test_a_memory_budget_is_never_exceeded_and_starves_nobody():
    budget, held, most, lock = MemoryBudget(10), 0, 0, threading.Lock()

    def reserve(amount):
        nonlocal held, most
        with budget.reserve(amount):
            with lock:
                held += min(amount, 10)
                most = max(most, held)
            time.sleep(0.002)
            with lock:
                held -= min(amount, 10)

    threads = [threading.Thread(target=reserve, args=(amount,)) for amount in (1, 9, 10, 25, 4, 4, 4, 0) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert held == 0
    assert 5 <= most <= 10


def test_memory_is_given_back_by_images_that_fail():
    from aecli.data.decoding.decode import _FILE_BYTES, _PIXELS

    for content in (b"no image", encoded(picture(200, 200))[:500], hand_made_png(50_000, 50_000, 8, 0, [])):
        fail_to_decode(content)
    assert (_FILE_BYTES._free, _PIXELS._free) == (_FILE_BYTES._size, _PIXELS._size)
