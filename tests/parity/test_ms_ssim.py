"""MS-SSIM against pytorch-msssim, and against scikit-image's pieces, to 1e-10."""

import numpy as np
import pytest
import torch
from skimage.data import astronaut
from skimage.metrics import structural_similarity
from skimage.transform import downscale_local_mean

from aecli.metrics.ms_ssim import MIN_SIDE, WEIGHTS, ms_ssim
from tests.support.vectors import batch

PHOTO = astronaut()
RANDOM = np.random.default_rng(0)


def noisy(image, deviation):
    return np.clip(image + RANDOM.normal(0, deviation, image.shape), 0, 255).astype(np.uint8)


CASES = {
    "photograph": (PHOTO[:200, :176], noisy(PHOTO[:200, :176], 20)),
    "smallest": (PHOTO[:MIN_SIDE, :MIN_SIDE], noisy(PHOTO[:MIN_SIDE, :MIN_SIDE], 60)),
    "sides that stay odd": (PHOTO[:175, 100:291], noisy(PHOTO[:175, 100:291], 5)),
    "negative": (PHOTO[:192, :192], 255 - PHOTO[:192, :192]),
    "flat": (np.full((170, 180, 3), 254, dtype=np.uint8), np.full((170, 180, 3), 255, dtype=np.uint8)),
}


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_pytorch_msssim(case):
    theirs = pytest.importorskip("pytorch_msssim")
    a, b = (batch(each) for each in CASES[case])
    distance = torch.arange(11, dtype=torch.float64) - 5
    taps = torch.exp(-(distance**2) / (2 * 1.5**2))  # which it rounds to float32
    window = (taps / taps.sum()).repeat(3, 1, 1, 1)
    expected = theirs.ms_ssim(a.double(), b.double(), size_average=False, win=window)
    assert ms_ssim(a, b).tolist() == pytest.approx(expected.tolist(), abs=1e-10)
    if case != "flat":  # of which it makes more than 1 in float32
        as_it_is = theirs.ms_ssim(a.float(), b.float(), size_average=False)
        assert ms_ssim(a, b).tolist() == pytest.approx(as_it_is.tolist(), abs=2e-5)


def by_hand(a, b):
    """Wang et al. 2003, equation 7, for sides that can be halved four times; a vast K1 makes a luminance of 1."""
    product = 1.0
    for scale, weight in enumerate(WEIGHTS):
        is_last = scale == len(WEIGHTS) - 1
        similarity = structural_similarity(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
                                           data_range=255, K1=0.01 if is_last else 1e9)  # fmt: skip
        product *= max(similarity, 0) ** weight
        a, b = (downscale_local_mean(each, (2, 2)) for each in (a, b))
    return product


@pytest.mark.parametrize("deviation", [3, 60])
def test_agrees_with_scikit_images_pieces(deviation):
    a = PHOTO[:192, 100:308].astype(np.float64)
    b = noisy(a, deviation).astype(np.float64)
    expected = np.mean([by_hand(a[..., channel], b[..., channel]) for channel in range(3)])
    assert ms_ssim(batch(a.astype(np.uint8)), batch(b.astype(np.uint8))).item() == pytest.approx(expected, abs=1e-10)
