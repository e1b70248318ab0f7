"""What reading did to the images that `eval` measures: told on the terminal, in the JSON and on the page."""

import numpy as np
import pytest
from PIL import Image, ImageCms

from aecli.errors import DataError
from aecli.progress import Notice
from tests.support.images import save_image
from tests.support.paired import compare, compare_json, crop
from tests.support.raw_images import hand_made_png

PSNR = ("psnr",)


def psnr_by_hand(a, b, peak=255):
    return 10 * np.log10(peak**2 / np.mean((a.astype(float) - b.astype(float)) ** 2))


def noisy(pixels, seed, amount=8):
    noise = np.random.default_rng(seed).normal(0, amount, pixels.shape)
    return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)


def write(folder, images, **options):
    for index, pixels in enumerate(images):
        save_image(folder / f"{index}.png", pixels, **options)


def told(folder, *pred, **options):
    """The report as JSON, and the notices."""
    heard = []
    found = compare_json(folder, *pred, listen=heard.append, metrics=PSNR, **options)
    return found, [each.text for each in heard if isinstance(each, Notice)]


def mean_psnr(found):
    return found["results"][0]["psnr"]["mean"]


class TestTransparency:
    @pytest.fixture
    def renders(self, tmp_path):
        """Truth with a transparent frame, and renders of it on black."""
        truth, alpha = [crop(index) for index in range(3)], np.zeros((64, 72), np.uint8)
        alpha[10:40, 20:60] = 255
        shown = [np.where(alpha[..., None] == 255, pixels, 0).astype(np.uint8) for pixels in truth]
        rendered = [np.where(alpha[..., None] == 255, noisy(pixels, 1), 0).astype(np.uint8) for pixels in truth]
        write(tmp_path / "gt", [np.dstack([pixels, alpha]) for pixels in truth])
        write(tmp_path / "ae", rendered)
        return tmp_path, shown, rendered

    @pytest.mark.parametrize(("background", "level"), [("white", 255), ("black", 0), ("#808080", 128)])
    def test_is_laid_over_the_background(self, renders, background, level):
        folder, shown, rendered = renders
        found, notices = told(folder, "ae", background=background)
        laid = [pixels.copy() for pixels in shown]
        for pixels in laid:
            pixels[:10], pixels[40:], pixels[:, :20], pixels[:, 60:] = level, level, level, level
        by_hand = np.mean([psnr_by_hand(a, b) for a, b in zip(laid, rendered, strict=True)])
        assert mean_psnr(found) == pytest.approx(by_hand, abs=1e-9)
        assert found["conversions"][str(folder / "gt")] == {
            "background": {"images": 3, "names": ["0.png", "1.png", "2.png"]}
        }
        assert background in found["definitions"]["reading"]
        (notice,) = notices
        assert "gt: 3 images with transparency" in notice and background in notice and "--background" in notice

    def test_wholly_transparent_pictures_are_no_comparison(self, tmp_path):
        nothing = np.zeros((64, 72), np.uint8)
        for name in ("gt", "ae"):
            write(tmp_path / name, [np.dstack([crop(index), nothing]) for index in range(2)])
        with pytest.raises(DataError, match=r"(?s)wholly transparent, all 2 pairs.*hint: .*-alpha off"):
            compare(tmp_path, "ae", metrics=PSNR)
        save_image(tmp_path / "gt/1.png", crop(1))
        _, notices = told(tmp_path, "ae")
        assert any(text.startswith("ae: 1 image is as wholly transparent") for text in notices)


def test_only_the_first_frame_is_compared(tmp_path):
    frames = [Image.fromarray(crop(index)) for index in range(6)]
    others = [frames[0], *(Image.fromarray(noisy(crop(index), index)) for index in range(1, 6))]
    for name, images in (("gt", frames), ("ae", others)):
        (tmp_path / name).mkdir()
        images[0].save(tmp_path / name / "stack.tif", save_all=True, append_images=images[1:])
    found, notices = told(tmp_path, "ae")
    assert found["results"][0]["psnr"]["identical"] == 1
    assert found["conversions"][str(tmp_path / "gt")]["frames"] == {"images": 1, "names": ["stack.tif"], "frames": 6}
    assert sum("only the first of 6 frames" in text for text in notices) == 2
    assert "first" in found["definitions"]["reading"]


def test_profiles_that_differ_are_told(tmp_path):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    write(tmp_path / "gt", [crop(index) for index in range(3)], icc_profile=lab)
    write(tmp_path / "ae", [crop(index) for index in range(3)])
    write(tmp_path / "same", [noisy(crop(index), 1) for index in range(3)], icc_profile=lab)
    found, notices = told(tmp_path, "ae", "same")
    assert [text.split(":")[0] for text in notices if "than their ground truth" in text] == ["ae"]
    assert any("ae: 3 images have another colour profile" in text and "magick" in text for text in notices)
    assert found["conversions"][str(tmp_path / "same")]["profile"]["images"] == 3


def test_what_is_passed_over_is_told(tmp_path):
    for name in ("gt", "ae"):
        write(tmp_path / name, [crop(0)])
    (tmp_path / "ae/1.heic").write_bytes(b"x")
    assert any("1 .heic file not read: 1.heic" in text for text in told(tmp_path, "ae")[1])


def test_the_page_lists_it(tmp_path):
    alpha = np.full((64, 72), 100, np.uint8)
    write(tmp_path / "gt", [np.dstack([crop(0), alpha])])
    write(tmp_path / "ae", [crop(0)])
    compare(tmp_path, "ae", metrics=PSNR, report=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "1 image with transparency laid over white" in page


class TestMoreThan8Bits:
    """Values of the files, not of their rounding."""

    def test_16_bit_grey(self, tmp_path):
        generator = np.random.default_rng(0)
        truth = [crop(index)[..., 0].astype(np.int64) * 257 for index in range(3)]
        other = [np.clip(a + generator.integers(-120, 121, a.shape), 0, 65535) for a in truth]
        write(tmp_path / "gt", [a.astype(np.uint16) for a in truth])
        write(tmp_path / "ae", [b.astype(np.uint16) for b in other])
        found, notices = told(tmp_path, "ae")
        by_hand = np.mean([psnr_by_hand(a, b, 65535) for a, b in zip(truth, other, strict=True)])
        assert mean_psnr(found) == pytest.approx(by_hand, abs=1e-9)
        assert found["results"][0]["psnr"]["identical"] == 0
        assert "ae: 3 images are identical at 8 bits" in notices[-1]
        assert found["notices"] == notices
        assert "3 of 3" in found["definitions"]["depth"]
        assert found["conversions"][str(tmp_path / "gt")]["depth"]["images"] == 3
        assert not any("reduced to 8" in text for text in notices), "they are measured as they are"

    def test_16_bit_colour_against_8_bits(self, tmp_path):
        values = np.random.default_rng(1).integers(0, 65536, (64, 72, 3))
        (tmp_path / "gt").mkdir()
        rows = [row.astype(">u2").tobytes() for row in values]
        (tmp_path / "gt/0.png").write_bytes(hand_made_png(72, 64, 16, 2, rows))
        write(tmp_path / "ae", [np.rint(values / 257).astype(np.uint8)])
        found, notices = told(tmp_path, "ae")
        by_hand = psnr_by_hand(values, np.rint(values / 257) * 257, 65535)
        assert mean_psnr(found) == pytest.approx(by_hand, abs=1e-9)
        assert "identical at 8 bits" in notices[-1]

    def test_8_bits_in_16_are_identical(self, tmp_path):
        write(tmp_path / "gt", [crop(0)[..., 0].astype(np.uint16) * 257])
        write(tmp_path / "ae", [crop(0)[..., 0]])
        found, notices = told(tmp_path, "ae")
        assert found["results"][0]["psnr"]["identical"] == 1
        assert notices == []

    def test_12_bits_in_16_bit_files(self, tmp_path):
        generator = np.random.default_rng(2)
        truth = [np.rint(crop(index)[..., 0] / 255 * 4095).astype(np.int64) for index in range(3)]
        other = [np.clip(a + generator.integers(-40, 41, a.shape), 0, 4095) for a in truth]
        write(tmp_path / "gt", [a.astype(np.uint16) for a in truth])
        write(tmp_path / "ae", [b.astype(np.uint16) for b in other])
        write(tmp_path / "eight", [np.rint(a / 4095 * 255).astype(np.uint8) for a in truth])
        _, notices = told(tmp_path, "ae")
        assert sum("--data-range 4095" in text for text in notices) == 2
        found, notices = told(tmp_path, "ae", "eight", data_range=4095)
        by_hand = np.mean([psnr_by_hand(a, b, 4095) for a, b in zip(truth, other, strict=True)])
        assert mean_psnr(found) == pytest.approx(by_hand, abs=1e-9)
        rounded = np.mean([psnr_by_hand(a * 255 / 4095, np.rint(a / 4095 * 255)) for a in truth])
        assert found["results"][1]["psnr"]["mean"] == pytest.approx(rounded, abs=1e-9)
        assert "4095" in found["definitions"]["depth"]
        assert [text for text in notices if "data-range" in text] == []

    def test_a_data_range_that_is_of_no_use_is_told(self, tmp_path):
        write(tmp_path / "gt", [crop(0)])
        assert "changes nothing" in told(tmp_path, "gt", data_range=4095)[1][0]
        write(tmp_path / "gt", [crop(0)[..., 0].astype(np.uint16) * 257])
        assert "above --data-range 4095" in told(tmp_path, "gt", data_range=4095)[1][0]

    def test_other_images_of_a_batch_stay_what_they_are(self, tmp_path):
        write(tmp_path / "gt", [crop(0), crop(1), crop(2)])
        write(tmp_path / "ae", [noisy(crop(index), index) for index in range(3)])
        before = compare(tmp_path, "ae")
        save_image(tmp_path / "gt/1.png", crop(1)[..., 0].astype(np.uint16) * 257)
        after = compare(tmp_path, "ae")
        assert before.n == after.n == 3
        for metric, tolerance in (("psnr", 0), ("ssim", 0), ("lpips", 1e-6)):  # which rounds with the size of a batch
            differences = abs(before.values[metric] - after.values[metric]).flatten()
            assert differences[0] <= tolerance and differences[2] <= tolerance and differences[1] > 1e-4
