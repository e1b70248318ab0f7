"""Mean squared error and peak signal-to-noise ratio of 8-bit images."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aecli.metrics.pairs import require_pairs

PEAK = 255.0
MIN_SIDE = 1


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared error of each pair, over pixels and channels.

    Args:
        a: uint8 (N, 3, H, W).
        b: the same shape and device.

    Returns:
        (N,) float64 on the CPU, from 0 to 255². The sum of squares is exact.

    Raises:
        ValueError: the shapes differ, or the images are not uint8 (N, 3, H, W).
    """
    require_pairs(a, b, MIN_SIDE)
    if a.device.type == "mps":  # has no float64
        a, b = a.cpu(), b.cpu()
    # Image by image, which stays in a core's cache. Exact throughout: float32 holds a square (at most 65,025) and
    # float64 the sum of as many as memory has.
    sums = [(one.float() - other).square_().sum(dtype=torch.float64) for one, other in zip(a, b, strict=True)]
    return torch.stack(sums).cpu() / a[0].numel()


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair, 10·log10(255² / MSE), in dB.

    Args:
        a: uint8 (N, 3, H, W).
        b: the same shape and device.

    Returns:
        (N,) float64 on the CPU; infinite where the two images are identical.

    Raises:
        ValueError: the shapes differ, or the images are not uint8 (N, 3, H, W).
    """
    return 10 * torch.log10(PEAK**2 / mse(a, b))


def pooled_psnr(values: NDArray[np.float64]) -> float | None:
    """PSNR of the mean MSE of images whose PSNR are `values` (N,), each weighing the same; None where that MSE is 0."""
    mean_mse = float(np.mean(PEAK**2 * 10 ** (-values / 10)))
    return 10 * float(np.log10(PEAK**2 / mean_mse)) if mean_mse > 0 else None
