"""`eval` of folders that do not pair, or hold images that cannot be compared: errors, --on-mismatch skip and resize."""

import numpy as np
import pytest
from PIL import Image

from aecli.errors import DataError
from aecli.progress import Notice
from tests.support.images import save_image, truncate
from tests.support.paired import compare, compare_json, crop, ssim_by_hand


@pytest.fixture
def mismatched(tmp_path):
    """The images a and b pair; c to h and an extra one have a problem each."""
    for name in "abcdefgh":
        save_image(tmp_path / f"gt/{name}.png", crop(ord(name)))
        save_image(tmp_path / f"ae/{name}.jpg", crop(ord(name)), quality=30)
        save_image(tmp_path / f"vae/{name}.png", crop(ord(name) + 1))
    (tmp_path / "ae/c.jpg").unlink()
    save_image(tmp_path / "vae/extra [1].png", crop(0))
    save_image(tmp_path / "ae/d.png", crop(0))
    save_image(tmp_path / "vae/e.png", crop(0, 40, 48))
    for name in ("gt/f.png", "ae/f.jpg", "vae/f.png"):
        save_image(tmp_path / name, crop(0, 12, 60))
    (tmp_path / "vae/g.png").write_bytes(b"no picture at all")
    truncate(tmp_path / "gt/h.png")
    return tmp_path


def test_skip_measures_the_same_images_for_all_and_lists_the_rest(mismatched):
    heard = []
    report = compare_json(mismatched, "ae", "vae", on_mismatch="skip", listen=heard.append)
    assert report["n"] == 2
    found = {(each["name"], each["prediction"]): each["reason"] for each in report["unpaired"]}
    assert set(found) == {
        ("c.png", "ae"), ("extra [1].png", "vae"), ("d.jpg", "ae"), ("e.png", "vae"), ("f.png", None),
        ("g.png", "vae"), ("h.png", None),
    }  # fmt: skip
    assert found["e.png", "vae"] == "48x40, its ground truth 72x64"
    assert "12" in found["f.png", None] and "lpips needs 31" in found["f.png", None]
    (notice,) = [each.text for each in heard if isinstance(each, Notice)]
    assert "'extra [1].png'" in notice
    for path in mismatched.glob("*/[!ab]*"):
        path.unlink()
    assert compare_json(mismatched, "ae", "vae")["results"] == report["results"]


@pytest.mark.parametrize("how", ["error", "resize"])
def test_names_that_do_not_pair_are_an_error_under_resize_too(mismatched, how):
    with pytest.raises(DataError) as caught:
        compare(mismatched, "ae", "vae", on_mismatch=how)
    message = str(caught.value)
    assert len(message.splitlines()) == 2
    for part in ("'c.png'", "'extra [1].png'", "'d.jpg'", "--pred ae", "--pred vae", "--on-mismatch skip"):
        assert part in message


def test_many_are_counted_and_a_few_named(tmp_path):
    for index in range(9):
        save_image(tmp_path / f"gt/{index}.png", crop(index))
    save_image(tmp_path / "ae/0.png", crop(0))
    with pytest.raises(DataError, match=r"(?m)8 missing: '1\.png', '2\.png', '3\.png', …$"):
        compare(tmp_path, "ae")


class TestDifferingSizes:
    @pytest.fixture
    def unequal(self, tmp_path):
        for name, pixels in {"gt/a": crop(0), "gt/b": crop(1), "ae/a": crop(2), "ae/b": crop(3, 10, 9)}.items():
            save_image(tmp_path / f"{name}.png", pixels)
        return tmp_path

    def test_are_an_error(self, unequal):
        with pytest.raises(DataError, match=r"(?s)'b\.png' \(9x10, its ground truth 72x64\).*--on-mismatch resize"):
            compare(unequal, "ae")

    def test_can_be_resized(self, unequal):
        resized = np.array(Image.fromarray(crop(3, 10, 9)).resize((72, 64), Image.Resampling.BICUBIC))
        expected = [ssim_by_hand(crop(0), crop(2)), ssim_by_hand(crop(1), resized)]
        report = compare_json(unequal, "ae", metrics=("ssim",), on_mismatch="resize")
        assert report["results"][0]["ssim"]["mean"] == pytest.approx(np.mean(expected), abs=1e-6)
        assert "1 of 2 of ae" in report["definitions"]["resize"]

    def test_can_be_skipped(self, unequal):
        report = compare_json(unequal, "ae", on_mismatch="skip")
        assert report["n"] == 1
        assert "resize" not in report["definitions"]


@pytest.mark.parametrize(
    ("side", "metrics", "window"),
    [(10, ("psnr", "ssim"), "gaussian"), (6, ("ssim",), "uniform"), (30, ("lpips",), "gaussian")],
)
def test_images_too_small_for_a_metric(tmp_path, side, metrics, window):
    save_image(tmp_path / "gt/a.png", crop(0, 40, side))
    save_image(tmp_path / "ae/a.png", crop(1, 40, side))
    with pytest.raises(DataError, match=rf"{side}x40, and {metrics[-1]} needs {side + 1} pixels"):
        compare(tmp_path, "ae", metrics=metrics, ssim_window=window)
    assert compare(tmp_path, "ae", metrics=("psnr",)).n == 1
    with pytest.raises(DataError, match="no image is left to measure"):
        compare(tmp_path, "ae", metrics=metrics, ssim_window=window, on_mismatch="skip")


class TestTruncatedImages:
    @pytest.fixture
    def pairs(self, tmp_path):
        for name in ("gt/a", "gt/b", "ae/a", "ae/b"):
            save_image(tmp_path / f"{name}.png", crop(ord(name[-1])))
        return tmp_path

    @pytest.mark.parametrize(("source", "label"), [("gt", "--gt"), ("ae", "--pred ae")])
    def test_are_named_or_skipped(self, pairs, source, label):
        truncate(pairs / source / "b.png")
        with pytest.raises(DataError, match=rf"(?s){label}: 1 unreadable: 'b\.png'.*--on-mismatch skip"):
            compare(pairs, "ae")
        report = compare_json(pairs, "ae", on_mismatch="skip")
        assert report["n"] == 1
        assert [each["name"] for each in report["unpaired"]] == ["b.png"]

    def test_are_an_error_when_nothing_else_is_left(self, pairs):
        for name in "ab":
            truncate(pairs / f"ae/{name}.png")
        with pytest.raises(DataError, match=r"no image is left to measure.*'a\.png'"):
            compare(pairs, "ae", on_mismatch="skip", per_image=pairs / "each.csv")
        assert not (pairs / "each.csv").exists()
