"""More than 8 bits a sample, against what tifffile, torchvision and NumPy make of the same files."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_image

from aecli.data.decoding.conversions import Conversion
from aecli.data.decoding.decode import decode
from aecli.data.decoding.formats import has_deep_colour, read_header
from tests.support.data import fail_to_decode, image_ref
from tests.support.images import encoded, picture
from tests.support.raw_images import hand_made_png


def samples(channels, height=7, width=9):
    return np.random.default_rng(channels).integers(0, 65536, (height, width, channels)).astype(np.uint16)


def png(values, colour, extra=b""):
    height, width, _ = values.shape
    return hand_made_png(width, height, 16, colour, [row.astype(">u2").tobytes() for row in values], extra)


def tiff(values, **options):
    file = BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def full_depth(content):
    return decode(image_ref(content), full_depth=True).pixels


def rounded(values):
    """To 8 bits: round half up of v / 257, which no v hits exactly."""
    return np.rint(values / 257).astype(np.uint8)


def over(values, alpha, background=65535):
    return np.rint(values * (alpha / 65535) + (1 - alpha / 65535) * background)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_16_bit_colour_tiffs_are_exact_and_rounded_as_grey_is(compression, byteorder):
    values = samples(3)
    content = tiff(values, photometric="rgb", compression=compression, byteorder=byteorder)
    np.testing.assert_array_equal(full_depth(content), tifffile.imread(BytesIO(content)))
    np.testing.assert_array_equal(decode(image_ref(content)).pixels, rounded(values))


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_separate_planes_are_read_or_refused(byteorder):
    values = samples(3)
    planes = values.transpose(2, 0, 1)
    whole = tiff(planes, photometric="rgb", planarconfig="separate", byteorder=byteorder)
    np.testing.assert_array_equal(full_depth(whole), values)
    fail_to_decode(tiff(planes, photometric="rgb", planarconfig="separate", compression="zlib"), "separate planes")


def test_transparency_of_16_bits_is_composited_before_rounding():
    values = samples(4)
    content = tiff(values, photometric="rgb", extrasamples=["unassalpha"])
    expected = over(values[..., :3].astype(float), values[..., 3:].astype(float))
    np.testing.assert_array_equal(full_depth(content), expected)
    over_black = rounded(over(values[..., :3].astype(float), values[..., 3:].astype(float), 0))
    np.testing.assert_array_equal(decode(image_ref(content), (0, 0, 0)).pixels, over_black)


@pytest.mark.filterwarnings("ignore:The image decoding")
@pytest.mark.parametrize(("channels", "colour"), [(1, 0), (2, 4), (3, 2), (4, 6)])
def test_16_bit_pngs_are_what_torchvision_reads(channels, colour):
    values = samples(channels)
    content = png(values, colour)
    read = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.UNCHANGED)
    read = read.permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(read, values)
    colours = np.repeat(read[..., :1], 3, axis=2) if channels < 3 else read[..., :3]
    expected = over(colours.astype(float), read[..., -1:].astype(float)) if channels in (2, 4) else colours
    np.testing.assert_array_equal(full_depth(content), expected)
    np.testing.assert_array_equal(decode(image_ref(content)).pixels, rounded(expected))


def test_a_transparent_colour_of_16_bits_is_compared_in_16_bits():
    values = np.array([[[1000, 2000, 3000], [1001, 2000, 3000]]], np.uint16)
    chunk = struct.pack(">HHH", 1000, 2000, 3000)
    extra = struct.pack(">I", 6) + b"tRNS" + chunk + struct.pack(">I", zlib.crc32(b"tRNS" + chunk))
    assert full_depth(png(values, 2, extra)).tolist() == [[[65535] * 3, [1001, 2000, 3000]]]


def test_white_is_zero():
    values = samples(1)[..., 0]
    content = tiff(values, photometric="miniswhite")
    np.testing.assert_array_equal(full_depth(content)[..., 0], 65535 - values)
    eight = (values >> 8).astype(np.uint8)
    np.testing.assert_array_equal(full_depth(tiff(eight, photometric="miniswhite"))[..., 0], 255 - eight)


def test_floats_keep_their_values():
    values = np.random.default_rng(0).random((7, 9)).astype(np.float32)
    read = full_depth(encoded(Image.fromarray(values), "TIFF"))
    assert read.dtype == np.float32
    np.testing.assert_allclose(read[..., 0], values * 65535, rtol=1e-6)


def test_8_bits_stay_8_bits_at_full_depth():
    read = decode(image_ref(encoded(picture())), full_depth=True)
    assert read.pixels.dtype == np.uint8 and read.conversions == Conversion(0) and read.peak == 0


@pytest.mark.parametrize("dtype", [np.int8, np.int16])
def test_signed_numbers_are_refused(dtype):
    fail_to_decode(tiff(np.zeros((4, 4), dtype)), "signed")


@pytest.mark.parametrize(
    ("values", "word"),
    [(np.zeros((4, 4, 3), np.float32), "floating-point"), (np.zeros((4, 4, 13), np.uint16), "13 channels"),
     (np.zeros((4, 4, 3), np.uint32), "32-bit")],
)  # fmt: skip
def test_unsupported_samples_are_named(values, word):
    photometric = "rgb" if values.shape[2] == 3 else "minisblack"
    fail_to_decode(tiff(values, photometric=photometric, planarconfig="contig"), word)


def test_a_layout_that_is_not_supported_is_named():
    fail_to_decode(tiff(samples(1)[..., 0], photometric="miniswhite", byteorder=">"), "1 channel of 16 bits", "PNG")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_at_full_depth_is_that_of_8_bits(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    values = samples(1)[..., 0]
    content = encoded(Image.fromarray(values), "PNG", exif=exif)
    upright = decode(image_ref(content))
    np.testing.assert_array_equal(rounded(full_depth(content)), upright.pixels)
    assert (Conversion.ORIENTATION in upright.conversions) == (orientation > 1)
    assert upright.peak == values.max()


@pytest.mark.parametrize(("kind", "channels"), [(b"P5", 1), (b"P6", 3)])
@pytest.mark.parametrize("peak", [65535, 4095, 100])
def test_netpbm_samples_are_scaled_by_their_peak(kind, channels, peak):
    values = np.random.default_rng(0).integers(0, peak + 1, (7, 9, channels))
    content = b"%s 9 7 %d\n" % (kind, peak) + values.astype(">u2" if peak > 255 else np.uint8).tobytes()
    expected = np.broadcast_to(values / peak, (7, 9, 3))
    np.testing.assert_array_equal(decode(image_ref(content)).pixels, np.rint(expected * 255))
    if peak > 255:
        np.testing.assert_array_equal(full_depth(content), np.rint(expected * 65535))
        fail_to_decode(content[:-1], "cut short" if channels == 3 else "")


def test_jpeg_2000_of_more_than_8_bits():
    values = samples(1)[..., 0]
    np.testing.assert_array_equal(full_depth(encoded(Image.fromarray(values), "JPEG2000"))[..., 0], values)


def test_an_avif_of_10_bits_says_so():
    content = bytearray(encoded(picture(), "AVIF"))
    opened = read_header(bytes(content))
    assert not has_deep_colour(opened, bytes(content))
    content[content.find(b"av1C") + 6] |= 0x40
    assert has_deep_colour(opened, bytes(content))
