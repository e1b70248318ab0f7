import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from aecli.data.decoding.decode import DecodeError, decode, image_size
from tests.support.data import fail_to_decode, image_ref
from tests.support.images import encoded, picture
from tests.support.raw_images import hand_made_png


def decoded(image, format="PNG", **options):
    return decode(image_ref(encoded(image, format, **options))).pixels


def grey(values):
    return np.repeat(np.asarray(values, dtype=np.uint8)[:, :, None], 3, axis=2)


# Formats


@pytest.mark.parametrize(
    ("format", "options"),
    [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}),
     ("TIFF", {"big_tiff": True}), ("PPM", {}), ("JPEG2000", {}), ("JPEG2000", {"no_jp2": True})],
)  # fmt: skip
def test_lossless_formats_give_the_pixels_back(format, options):
    pixels = picture()
    result = decoded(pixels, format, **options)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, pixels)


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "AVIF"])
def test_lossy_formats_are_close(format):
    rows, columns = np.mgrid[0:48, 0:64]
    pixels = np.stack([rows * 4, columns * 3, 255 - rows * 2], axis=-1).astype(np.uint8)
    assert np.abs(decoded(pixels, format, quality=95).astype(int) - pixels).max() < 12


def test_pillow_images_take_the_same_path():
    pixels = picture()
    np.testing.assert_array_equal(decode(image_ref(Image.fromarray(pixels))).pixels, pixels)
    half = Image.new("LA", (2, 1), (0, 0))
    np.testing.assert_array_equal(decode(image_ref(half)).pixels, np.full((1, 2, 3), 255))


def test_first_frame_of_several():
    first, second = Image.fromarray(picture(seed=1)), Image.fromarray(picture(seed=2))
    for format, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        result = decoded(first, format, save_all=True, append_images=[second], **options)
        np.testing.assert_array_equal(result, picture(seed=1))


# Colour


def test_grey_and_one_bit():
    values = picture()[:, :, 0]
    np.testing.assert_array_equal(decoded(values), grey(values))
    bits = values > 100
    for format in ("PNG", "TIFF", "BMP"):
        np.testing.assert_array_equal(decoded(Image.fromarray(bits), format), grey(bits * 255))


def over_white(colour, alpha):
    alpha = alpha[..., None] / 255
    return colour * alpha + 255 * (1 - alpha)


def test_alpha_is_laid_over_white():
    colour, alpha = picture(), picture(seed=3)[:, :, 1]
    alpha[0, :4] = 0, 255, 128, 1
    rgba = Image.fromarray(np.dstack([colour, alpha]))
    for format, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        result = decoded(rgba, format, **options)
        assert np.abs(result - over_white(colour, alpha)).max() <= 1
        np.testing.assert_array_equal(result[0, 0], [255, 255, 255])
        np.testing.assert_array_equal(result[0, 1], colour[0, 1])
    la = Image.fromarray(np.dstack([colour[:, :, 0], alpha]))
    expected = over_white(grey(colour[:, :, 0]), alpha)
    assert la.mode == "LA"
    assert np.abs(decoded(la) - expected).max() <= 1
    assert np.abs(decode(image_ref(rgba.convert("RGBa"))).pixels - over_white(colour, alpha)).max() <= 2


def test_palettes_with_and_without_transparency():
    indices = np.arange(12, dtype=np.uint8).reshape(3, 4) % 4
    colours = np.array([[10, 20, 30], [200, 0, 0], [0, 200, 0], [0, 0, 200]], dtype=np.uint8)
    image = Image.fromarray(indices)
    image = image.convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette(colours.ravel().tolist())
    np.testing.assert_array_equal(decoded(image), colours[indices])
    np.testing.assert_array_equal(decoded(image, "BMP"), colours[indices])
    for transparency, alphas in ((2, [255, 255, 0, 255]), (bytes([0, 128, 255, 255]), [0, 128, 255, 255])):
        result = decoded(image, transparency=transparency)
        expected = over_white(colours[indices], np.array(alphas)[indices])
        assert np.abs(result - expected).max() <= 1
    with_alpha = image.convert("PA")
    with_alpha.putalpha(0)
    assert decode(image_ref(with_alpha)).pixels.min() == 255


def test_transparent_colour_of_grey_and_rgb():
    values = np.array([[0, 7, 9]], dtype=np.uint8)
    np.testing.assert_array_equal(decoded(values, transparency=7), grey([[0, 255, 9]]))
    np.testing.assert_array_equal(decoded(grey(values), transparency=(7, 7, 7)), grey([[0, 255, 9]]))
    wide = np.array([[0, 7 * 257, 9 * 257]], dtype=np.uint16)
    transparent = struct.pack(">I", 2) + b"tRNS" + struct.pack(">H", 7 * 257)
    transparent += struct.pack(">I", zlib.crc32(transparent[4:]))
    content = hand_made_png(3, 1, 16, 0, [wide.astype(">u2").tobytes()], transparent)
    np.testing.assert_array_equal(decode(image_ref(content)).pixels, grey([[0, 255, 9]]))


def test_sixteen_bit_grey_is_scaled_and_rounded():
    values = np.arange(65536).reshape(256, 256)
    expected = grey(np.rint(values / 257))
    np.testing.assert_array_equal(
        decode(image_ref(hand_made_png(256, 256, 16, 0, [r.astype(">u2").tobytes() for r in values]))).pixels,
        expected,
    )
    for format in ("PNG", "TIFF"):
        np.testing.assert_array_equal(decoded(values.astype(np.uint16), format), expected)
    for mode, dtype in (("I;16", "<u2"), ("I;16B", ">u2"), ("I", "<i4")):
        image = Image.frombytes(mode, (256, 256), values.astype(dtype).tobytes())
        np.testing.assert_array_equal(decode(image_ref(image)).pixels, expected)


def test_sixteen_bit_colour_keeps_the_high_byte():
    values = np.array([[0, 256, 65535], [300, 40000, 1]])
    content = hand_made_png(2, 1, 16, 2, [values.astype(">u2").tobytes()])
    assert np.abs(decode(image_ref(content)).pixels[0] - values / 257).max() <= 1
    rgba = np.array([[0, 256, 65535, 65535], [300, 40000, 1, 0]])
    result = decode(image_ref(hand_made_png(2, 1, 16, 6, [rgba.astype(">u2").tobytes()]))).pixels
    np.testing.assert_array_equal(result[0, 1], [255, 255, 255])
    assert np.abs(result[0, 0] - values[0] / 257).max() <= 1


def test_integers_of_no_known_scale_are_refused():
    for value in (-1, 65536):
        fail_to_decode(encoded(np.array([[0, value]], dtype=np.int32), "TIFF"), "32-bit integers", "65535")


def test_floats():
    values = np.array([[0, 0.25, 0.5, 1]], dtype=np.float32)
    np.testing.assert_array_equal(decoded(values, "TIFF"), grey(np.rint(values * 255)))
    for wrong in (np.nan, np.inf, -0.01, 1.01):
        fail_to_decode(encoded(np.array([[0, wrong]], dtype=np.float32), "TIFF"), "floating-point", "[0, 1]")


def test_cmyk_and_ycck_as_adobe_writes_them():
    ink = np.full((16, 16, 4), (40, 160, 220, 30), dtype=np.uint8)
    rgb = (255 - ink[:, :, :3].astype(float)) * (255 - 30) / 255
    cmyk = Image.frombytes("CMYK", (16, 16), ink.tobytes())
    content = encoded(cmyk, "JPEG", quality=100)
    assert b"Adobe" in content
    assert np.abs(decode(image_ref(content)).pixels - rgb).max() < 4
    assert np.abs(decoded(cmyk, "TIFF") - rgb).max() < 2
    # YCCK (Adobe's technical note 5116, transform 2): the inks as YCbCr, and all samples inverted but those three.
    luma = Image.frombytes("RGB", (16, 16), ink[:, :, :3].tobytes()).convert("YCbCr")
    samples = [channel.point([255 - value for value in range(256)]) for channel in luma.split()]
    content = encoded(Image.merge("CMYK", [*samples, cmyk.split()[3]]), "JPEG", quality=100)
    transform = content.index(b"Adobe") + 11
    assert content[transform] == 0
    assert np.abs(decode(image_ref(content[:transform] + b"\2" + content[transform + 1 :])).pixels - rgb).max() < 6


# Orientation

# EXIF 2.3, tag 0x0112: which side of the stored picture is the seen one's top, and which its left.
STORED_TO_SEEN = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: np.rot90(p, 1),
}


@pytest.mark.parametrize("orientation", STORED_TO_SEEN)
def test_exif_orientation_in_every_format_that_has_it(orientation):
    stored = picture(24, 40)
    seen = STORED_TO_SEEN[orientation](stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for format, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        content = encoded(stored, format, exif=exif, **options)
        np.testing.assert_array_equal(decode(image_ref(content)).pixels, seen)
        assert image_size(image_ref(content)) == seen.shape[:2]
    smooth = np.ascontiguousarray(stored * 0 + np.arange(40, dtype=np.uint8)[None, :, None] * 6)
    content = encoded(smooth, "JPEG", exif=exif, quality=100)
    assert np.abs(decode(image_ref(content)).pixels.astype(int) - STORED_TO_SEEN[orientation](smooth)).max() < 8
    assert image_size(image_ref(content)) == seen.shape[:2]
    wide = stored[:, :, 0].astype(np.uint16) * 257
    np.testing.assert_array_equal(decoded(wide, exif=exif), STORED_TO_SEEN[orientation](grey(stored[:, :, 0])))


def test_orientation_behind_a_pngs_pixels_is_found():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(picture(24, 40), exif=exif)
    start = content.index(b"eXIf") - 4
    end = start + 12 + struct.unpack(">I", content[start : start + 4])[0]
    moved = content[:start] + content[end:-12] + content[start:end] + content[-12:]
    np.testing.assert_array_equal(decode(image_ref(moved)).pixels, np.rot90(picture(24, 40), -1))
    assert image_size(image_ref(moved)) == (40, 24)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01", b"x" * 40]
)
def test_broken_exif_does_not_fail_the_image(exif):
    for format in ("PNG", "JPEG", "WEBP"):
        content = encoded(picture(), format, exif=exif)
        assert decode(image_ref(content)).pixels.shape == (24, 32, 3)
        assert image_size(image_ref(content)) == (24, 32)


def test_orientation_of_no_meaning_is_ignored():
    for value in (0, 9, 65535):
        exif = Image.Exif()
        exif[0x0112] = value
        np.testing.assert_array_equal(decoded(picture(), exif=exif), picture())


def test_image_size_reads_the_header_only():
    content = encoded(picture(300, 200), "PNG")
    assert image_size(image_ref(content[:100])) == (300, 200)
    with pytest.raises(DecodeError):
        image_size(image_ref(content[:20]))
