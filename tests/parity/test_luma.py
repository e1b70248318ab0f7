"""PSNR and SSIM of the luma, and metrics without a border, against scikit-image."""

import numpy as np
import pytest
import torch
from skimage.color import rgb2ycbcr
from skimage.data import astronaut, coffee
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from aecli.errors import DataError
from aecli.metrics.luma import luma
from aecli.metrics.psnr import psnr
from aecli.metrics.ssim import ssim
from tests.support.images import save_image
from tests.support.paired import compare_json, ssim_by_hand

TRUTHS = [astronaut()[:96, :128], coffee()[100:196, 50:178], np.random.default_rng(0).integers(0, 256, (96, 128, 3))]
TRUTHS = [truth.astype(np.uint8) for truth in TRUTHS]
NOISE = np.random.default_rng(1).normal(0, 8, (3, 96, 128, 3))
OTHERS = [np.clip(np.rint(a + noise), 0, 255).astype(np.uint8) for a, noise in zip(TRUTHS, NOISE, strict=True)]


def batch(images):
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def y(image):
    return rgb2ycbcr(image)[..., 0]


def ssim_of_luma(a, b, **options):
    return structural_similarity(y(a), y(b), data_range=255, **options)


def test_luma_is_scikit_images():
    assert luma(batch(TRUTHS)).numpy()[:, 0] == pytest.approx(np.stack([y(each) for each in TRUTHS]), abs=1e-10)
    white, black = torch.full((3, 1, 1), 255, dtype=torch.uint8), torch.zeros(3, 1, 1, dtype=torch.uint8)
    assert (luma(white).item(), luma(black).item()) == (pytest.approx(235), 16)


def test_psnr_of_luma():
    expected = [peak_signal_noise_ratio(y(a), y(b), data_range=255) for a, b in zip(TRUTHS, OTHERS, strict=True)]
    assert psnr(batch(TRUTHS), batch(OTHERS), on_luma=True).tolist() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("window", ["gaussian", "uniform"])
def test_ssim_of_luma(window):
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    options = gaussian if window == "gaussian" else {}
    expected = [ssim_of_luma(a, b, **options) for a, b in zip(TRUTHS, OTHERS, strict=True)]
    assert ssim(batch(TRUTHS), batch(OTHERS), window, on_luma=True).tolist() == pytest.approx(expected, abs=1e-10)


def test_a_border_left_out_of_every_metric(tmp_path, lpips_references):
    for index, (truth, other) in enumerate(zip(TRUTHS, OTHERS, strict=True)):
        save_image(tmp_path / f"gt/{index}.png", truth)
        save_image(tmp_path / f"sr/{index}.png", other)
    found = compare_json(tmp_path, "sr", metrics=("psnr", "ssim", "lpips", "psnr-y"), crop_border=4)
    pairs = [(a[4:-4, 4:-4], b[4:-4, 4:-4]) for a, b in zip(TRUTHS, OTHERS, strict=True)]
    (result,) = found["results"]
    assert result["psnr"]["mean"] == pytest.approx(np.mean([peak_signal_noise_ratio(*pair) for pair in pairs]))
    assert result["ssim"]["mean"] == pytest.approx(np.mean([ssim_by_hand(*pair) for pair in pairs]), abs=1e-6)
    of_luma = [peak_signal_noise_ratio(y(a), y(b), data_range=255) for a, b in pairs]
    assert result["psnr-y"]["mean"] == pytest.approx(np.mean(of_luma))
    network = lpips_references[0]["alex"]
    with torch.no_grad():
        a, b = (batch(side) / 127.5 - 1 for side in zip(*pairs, strict=True))
        assert result["lpips"]["mean"] == pytest.approx(network(a, b).mean().item(), abs=1e-5)
    assert all("4 pixels" in found["definitions"][name] for name in ("psnr", "ssim", "lpips", "psnr-y"))


def test_images_that_a_border_leaves_nothing_of_are_too_small(tmp_path):
    for folder in ("gt", "sr"):
        save_image(tmp_path / f"{folder}/0.png", TRUTHS[0][:8])
    with pytest.raises(DataError, match="too small"):
        compare_json(tmp_path, "sr", metrics=("psnr",), crop_border=4)
    assert compare_json(tmp_path, "sr", metrics=("psnr",), crop_border=3)["n"] == 1


def test_values_are_columns_of_the_csv_where_asked_for(tmp_path):
    save_image(tmp_path / "gt/0.png", TRUTHS[0])
    save_image(tmp_path / "sr/0.png", OTHERS[0])
    found = compare_json(tmp_path, "sr", metrics=("ssim-y", "psnr-y"), per_image=tmp_path / "each.csv")
    assert found["results"][0]["psnr"] is None and found["results"][0]["psnr-y"]["images"] == 1
    header, row = (tmp_path / "each.csv").read_text().splitlines()
    assert header == "name,prediction,psnr,ssim,lpips,ssim-y,psnr-y"
    assert row.split(",")[2:5] == ["", "", ""]
    assert float(row.split(",")[-1]) == pytest.approx(
        peak_signal_noise_ratio(y(TRUTHS[0]), y(OTHERS[0]), data_range=255)
    )
