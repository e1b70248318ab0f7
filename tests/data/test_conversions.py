"""What decoding did to an image is said: kind by kind, for whole sources."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageCms

from aecli.data.decoding.conversions import Conversion, ConversionCounts, Decoded
from aecli.data.decoding.decode import decode
from tests.support.data import image_ref
from tests.support.images import encoded, picture


def conversions(image, format="PNG", **options):
    return decode(image_ref(encoded(image, format, **options))).conversions


def with_alpha(alpha):
    pixels = np.dstack([picture(), np.full((24, 32), 255, np.uint8)])
    pixels[3:9, 4:7, 3] = alpha
    return pixels


def test_nothing_is_said_of_what_is_taken_as_it_is():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert conversions(picture()) == Conversion(0)
    assert conversions(picture(), "JPEG", icc_profile=srgb) == Conversion(0)
    assert conversions(with_alpha(255)) == Conversion(0)  # an alpha channel that hides nothing


def test_transparency_and_its_background():
    assert conversions(with_alpha(254)) == Conversion.BACKGROUND
    hidden = np.dstack([picture(), np.zeros((24, 32), np.uint8)])
    assert conversions(hidden) == Conversion.BACKGROUND | Conversion.TRANSPARENT
    read = decode(image_ref(encoded(with_alpha(0))), background=(10, 20, 30)).pixels
    np.testing.assert_array_equal(read[4, 5], [10, 20, 30])
    np.testing.assert_array_equal(read[0, 0], picture()[0, 0])


@pytest.mark.parametrize(
    ("format", "options", "frames"), [("TIFF", {}, 3), ("PNG", {}, 3), ("WEBP", {"lossless": True}, 3), ("GIF", {}, 0)]
)
def test_the_first_of_several_frames(format, options, frames):
    images = [Image.fromarray(picture(seed=seed)) for seed in range(3)]
    content = encoded(images[0], format, save_all=True, append_images=images[1:], **options)
    read = decode(image_ref(content))
    assert read.conversions == Conversion.FRAMES and read.frames == frames


def test_a_thumbnail_is_no_page():
    file = BytesIO()
    small = Image.fromarray(picture(8, 8))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    Image.fromarray(picture()).save(file, "TIFF", save_all=True, append_images=[small])
    assert decode(image_ref(file.getvalue())).frames == 1


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_another_profile(format):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    assert conversions(picture(), format, icc_profile=lab) == Conversion.PROFILE


def test_orientation_depth_and_grey():
    exif = Image.Exif()
    exif[0x0112] = 6
    for format in ("PNG", "JPEG", "TIFF"):
        assert conversions(picture(), format, exif=exif) == Conversion.ORIENTATION
    assert conversions(picture()[..., 0]) == Conversion.GREY
    assert conversions(picture()[..., 0].astype(np.uint16) * 257) == Conversion.GREY | Conversion.DEPTH


class TestCounts:
    def counts(self, *kinds, peak=0):
        counts = ConversionCounts()
        for number, each in enumerate(kinds):
            counts.add(f"{number}.png", Decoded(np.empty(0), each, 1, peak))
        return counts

    def test_a_line_each_with_a_count_and_up_to_three_names(self):
        counts = self.counts(*[Conversion.ORIENTATION] * 5, Conversion.BACKGROUND)
        assert list(counts.notices("photos", "black")) == [
            "photos: 1 image with transparency laid over black (--background): 5.png",
            "photos: 5 images turned as their EXIF orientation says: 0.png, 1.png, 2.png, …",
        ]

    def test_grey_is_said_among_colour_alone(self):
        assert not list(self.counts(Conversion.GREY, Conversion.GREY).notices("x", "white"))
        assert ["grey among colour" in line for line in self.counts(Conversion.GREY, Conversion(0)).notices("x", "w")]

    def test_a_peak_far_below_that_of_16_bits(self):
        (line,) = self.counts(Conversion.DEPTH, peak=3840).notices("x", "white", keeps_depth=True)
        assert "no value above 3,840 of 65,535" in line and "--data-range 4095" in line

    def test_there_and_back_through_json(self):
        counts = self.counts(Conversion.DEPTH | Conversion.GREY, Conversion(0), Conversion.FRAMES, peak=300)
        again = ConversionCounts.from_json(counts.to_json(), counts.images)
        assert again == counts
        merged = self.counts(Conversion.DEPTH, peak=70)
        merged.update(again)
        assert merged.kinds[Conversion.DEPTH].images == 2 and merged.images == 4 and merged.peak == 300
        for damaged in (None, [], {"depth": 3}, {"depth": {"images": "x"}}):
            assert not ConversionCounts.from_json(damaged, 1).kinds
