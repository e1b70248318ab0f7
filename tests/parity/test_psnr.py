"""PSNR and MSE against scikit-image."""

import numpy as np
import pytest
import torch
from skimage.data import astronaut
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio

from aecli.metrics.psnr import mse, psnr
from tests.support.vectors import batch


def noisy(image, deviation):
    noise = np.random.default_rng(0).normal(0, deviation, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


PHOTO = astronaut()[:96, :128]


def test_agrees_with_scikit_image():
    others = [noisy(PHOTO, 1), noisy(PHOTO, 60), 255 - PHOTO, np.zeros_like(PHOTO)]
    found = psnr(batch(*[PHOTO] * 4), batch(*others))
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([peak_signal_noise_ratio(PHOTO, other) for other in others], abs=1e-10)
    squared = mse(batch(*[PHOTO] * 4), batch(*others))
    assert squared.tolist() == pytest.approx([mean_squared_error(PHOTO, other) for other in others], rel=1e-14)
