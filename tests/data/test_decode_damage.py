import struct
import warnings

import numpy as np
import pytest
from PIL import Image

from aecli.data.decoding import limits
from aecli.data.decoding.decode import DecodeError, decode, decode_fitted, image_size
from aecli.data.image_ref import ImageRef
from aecli.data.sources.registry import list_images
from aecli.data.sources.shards import Shards
from tests.support.data import fail_to_decode, image_ref
from tests.support.images import encoded, picture
from tests.support.raw_images import hand_made_png
from tests.support.shards import write_tar, write_zip


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_cut_short(format):
    content = encoded(picture(100, 100), format)
    for share in (0.99, 0.5, 0.1):
        fail_to_decode(content[: int(len(content) * share)])


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"", "empty file"), (b"hello", "not a PNG"), (b"GIF89a" + bytes(40), ""), (b"<svg/>", "an SVG drawing"),
     (b"\x89PNG\r\n\x1a\n", ""), (b"BM", ""), (b"II*\0", ""), (b"\xff\xd8\xff", ""), (b"RIFF\0\0\0\0WAVE", "not a PNG"),
     (b"<!DOCTYPE html>", "HTML"), (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
     (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"), (b"\0\0\0\x18ftypisom\0\0\0\0mp42", "video"),
     (b"8BPS\0\1", "Photoshop"), (b"\x93NUMPY\1", "NumPy"), (b"PK\3\4", "zip file")],
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
                assert decode(image_ref(bytes(content))).pixels.dtype == np.uint8
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
        assert decode(image_ref(content)).pixels.shape == (24, 32, 3)
        assert limits.PIXEL_LIMIT == Image.MAX_IMAGE_PIXELS  # Pillow refuses at twice as much, and warns before that
        monkeypatch.setattr(limits, "PIXEL_LIMIT", 24 * 32 - 1)
        fail_to_decode(content, "32x24", str(24 * 32 - 1))


def test_a_palette_that_is_not_there():
    fail_to_decode(hand_made_png(8, 2, 8, 3, [bytes(8)] * 2), "damaged header")


def test_no_pixels():
    fail_to_decode(hand_made_png(0, 5, 8, 0, []))
    fail_to_decode(Image.new("RGB", (0, 5)), "no pixels")


# A bug of ours is not a damaged image


@pytest.mark.parametrize("error", [KeyError, TypeError, ValueError, AttributeError, OSError])
@pytest.mark.parametrize(
    "function",
    ["decode.check_structure", "decode.check_size", "decode.check_tiles", "decode.to_rgb", "decode._fit",
     "colour._composited", "colour.bands"],
)  # fmt: skip
def test_a_bug_in_our_own_code_is_raised_as_it_is(monkeypatch, function, error):
    def broken(*_arguments):
        raise error("a bug")

    monkeypatch.setattr(f"aecli.data.decoding.{function}", broken)
    image = image_ref(encoded(Image.fromarray(picture()).convert("RGBA")))
    with pytest.raises(error, match="a bug") as caught:
        decode_fitted(image, 8, "squash")
    assert caught.type is error


def test_a_bug_in_a_sources_own_code_is_raised_as_it_is():
    def broken():
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        decode(ImageRef("x.png", "x.png", "", broken))


@pytest.mark.parametrize("error", [KeyError, TypeError, ValueError])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_bug_while_listing_an_archive_is_raised_as_it_is(tmp_path, monkeypatch, kind, error):
    def broken(*_arguments):
        raise error("a bug")

    path = tmp_path / f"a.{kind}"
    {"zip": write_zip, "tar": write_tar}[kind](path, [("a.png", encoded(picture()))])
    monkeypatch.setattr(f"aecli.data.sources.{kind}s.check_path", broken)
    with pytest.raises(error, match="a bug"):
        list_images(str(path))


def test_a_bug_while_reading_shards_is_raised_as_it_is(tmp_path, monkeypatch):
    def broken(*_arguments):
        raise ValueError("a bug")

    write_tar(tmp_path / "a.tar", {"a.png": encoded(picture())})
    for function in ("_content", "_image_columns", "_load_arguments"):
        with monkeypatch.context() as patch:
            patch.setattr(f"aecli.data.sources.shards.{function}", broken)
            with pytest.raises(ValueError, match="a bug"):
                Shards(str(tmp_path / "a.tar"))
