"""Mean squared error and peak signal-to-noise ratio (PSNR) of images on the scale of 8 bits, over RGB or over luma."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aecli.configs import EvalConfig
from aecli.metrics import luma
from aecli.metrics.base import (
    EIGHT_BITS,
    Images,
    Metric,
    Values,
    check_pairs,
    computed_on_arrays,
    deep_range,
    load_pairwise,
    namespace,
    to_scale,
)

PEAK = EIGHT_BITS
MIN_SIDE = 1
_DEFINITION = (
    "{name} of an image is 10 log10(255^2 / MSE) dB, its MSE taken over {values}; "
    "mean, ci95 and comparisons leave out identical images (infinite PSNR), which are counted; "
    "median is over all images; pooled is the {name} of the mean MSE of all images, each image weighing the same."
)

# Pixels computed at a time, in float: what stays in a core's cache. 8 pairs of 256×256 take 1.5 ms image by image,
# 2.1 ms at once (AMD EPYC); and memory does not grow with the size of an image.
_CPU_PIXELS = 2**16
_GPU_PIXELS = 2**22


def build(config: EvalConfig) -> Metric:
    """Describe PSNR."""
    return _describe("psnr", "pixels and RGB channels of 8 bits", partial(psnr, data_range=deep_range(config)))


def build_y(config: EvalConfig) -> Metric:
    """Describe PSNR of the luma."""
    score = partial(psnr, on_luma=True, data_range=deep_range(config))
    return _describe("psnr-y", f"pixels of the luma {luma.DEFINITION}", score)


def _describe(name: str, values: str, score: Callable[[Images, Images], Values]) -> Metric:
    definition = _DEFINITION.format(name=name.upper(), values=values)
    return Metric(name, "dB", True, MIN_SIDE, definition, load_pairwise(score), pooled_psnr, digits=2)


@computed_on_arrays
def mse(a: Images, b: Images, on_luma: bool = False, data_range: float = EIGHT_BITS) -> NDArray[np.float64]:
    """Mean squared error of each pair, over pixels and channels; the sum of squares is exact.

    Args:
        a: arrays or tensors uint8 (N, 3, H, W), or more bits as uint16 or floats; ValueError for anything else.
        b: the same shape and device, of either kind.
        on_luma: over pixels of the luma, in float64, instead.
        data_range: the highest value of those of more bits, which are measured unrounded.

    Returns:
        (N,) float64 on the CPU, from 0 to 255²; of tensors a tensor.
    """
    check_pairs(a, b, MIN_SIDE)
    _, channels, height, width = a.shape
    rows = max(1, (_CPU_PIXELS if isinstance(a, np.ndarray) else _GPU_PIXELS) // width)
    strips = [slice(top, top + rows) for top in range(0, height, rows)]
    sums = [
        sum(_squared_error(one[:, strip], other[:, strip], on_luma, data_range) for strip in strips)
        for one, other in zip(a, b, strict=True)
    ]
    values = (1 if on_luma else channels) * height * width
    return np.array([float(total) / values for total in sums], dtype=np.float64)


def _squared_error(a: Images, b: Images, on_luma: bool, data_range: float) -> Any:
    """The sum of squared differences of (3, H, W), over channels or of the luma."""
    difference = to_scale(a, data_range) - to_scale(b, data_range)
    if on_luma:
        difference = luma.weighted_sum(difference)
    # Exact for RGB of uint8: float64 holds the sum of as many squares as fit in memory.
    return namespace(difference).square(difference).sum()


@computed_on_arrays
def psnr(a: Images, b: Images, on_luma: bool = False, data_range: float = EIGHT_BITS) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio of each pair (as for `mse`), 10·log10(255² / MSE), in dB: (N,) float64 on the CPU.

    It is infinite where the two images are identical.
    """
    with np.errstate(divide="ignore"):
        decibels: NDArray[np.float64] = 10 * np.log10(PEAK**2 / np.asarray(mse(a, b, on_luma, data_range)))
    return decibels


def pooled_psnr(values: NDArray[np.float64]) -> float | None:
    """PSNR of the mean MSE of images whose PSNRs are `values` (N,), equally weighted; None where that MSE is 0."""
    mean_mse = float(np.mean(PEAK**2 * 10 ** (-values / 10)))
    return 10 * float(np.log10(PEAK**2 / mean_mse)) if mean_mse > 0 else None
