import struct
import warnings

import numpy as np
import pytest
from PIL import Image

from aecli.data.decoding import limits
from aecli.data.decoding.decode import DecodeError, decode, image_size
from aecli.data.image_ref import ImageRef
from tests.support.data import fail_to_decode, image_ref
from tests.support.images import encoded, hand_made_png, picture


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_cut_short(format):
    content = encoded(picture(100, 100), format)
    for share in (0.99, 0.5, 0.1):
        fail_to_decode(content[: int(len(content) * share)])


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"", "empty file"), (b"hello", "not a PNG"), (b"GIF89a" + bytes(40), "not a PNG"), (b"<svg/>", "not a PNG"),
     (b"\x89PNG\r\n\x1a\n", ""), (b"BM", ""), (b"II*\0", ""), (b"\xff\xd8\xff", ""), (b"RIFF\0\0\0\0WAVE", "")],
)  # fmt: skip
def test_what_is_no_image(content, word):
    fail_to_decode(content, word)


def test_no_damaged_byte_escapes():
    random = np.random.default_rng(0)
    contents = [encoded(picture(), f) for f in ("PNG", "JPEG", "WEBP", "BMP", "TIFF")]
    contents.append(encoded(picture(), "TIFF", compression="tiff_deflate"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for trial in range(600):
            content = bytearray(contents[trial % len(contents)])
            ends = [slice(0, 200), slice(-200, None)]
            region = range(len(content))[ends[trial // 7 % 2]]
            for place in random.choice(region, size=3):
                content[place] = random.integers(256)
            try:
                assert decode(image_ref(bytes(content))).dtype == np.uint8
            except DecodeError as error:
                assert error.reason


def test_errors_of_reading_name_the_image():
    def load():
        raise PermissionError(13, "Permission denied", "/a/b")

    with pytest.raises(DecodeError, match=r"x\.png: Permission denied"):
        decode(ImageRef("x.png", "x.png", "", load))


def test_bombs_are_refused_from_the_header_without_a_warning():
    enormous = hand_made_png(65535, 65535, 8, 0, [])
    fail_to_decode(enormous, "65535x65535", str(2**28))
    with pytest.raises(DecodeError, match="pixels"):
        image_size(image_ref(enormous))
    fail_to_decode(
        struct.pack("<2sIHHIIiiHHIIIIII", b"BM", 54, 0, 0, 54, 40, 30000, 30000, 1, 24, 0, 0, 0, 0, 0, 0), "30000x30000"
    )


def test_the_limit_of_pixels_is_ours_in_every_format(monkeypatch):
    for format in ("PNG", "JPEG", "BMP", "WEBP", "TIFF"):
        monkeypatch.undo()
        content = encoded(picture(), format)
        assert decode(image_ref(content)).shape == (24, 32, 3)
        assert limits.PIXEL_LIMIT == Image.MAX_IMAGE_PIXELS  # Pillow refuses at twice as much, and warns before that
        monkeypatch.setattr(limits, "PIXEL_LIMIT", 24 * 32 - 1)
        fail_to_decode(content, "32x24", str(24 * 32 - 1))


def test_a_palette_that_is_not_there():
    fail_to_decode(hand_made_png(8, 2, 8, 3, [bytes(8)] * 2), "header is damaged")


def test_no_pixels():
    fail_to_decode(hand_made_png(0, 5, 8, 0, []))
    fail_to_decode(Image.new("RGB", (0, 5)), "no pixels")
