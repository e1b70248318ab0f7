"""Multi-scale structural similarity (MS-SSIM) of images on the scale of 8 bits.

Wang, Simoncelli and Bovik, "Multi-scale structural similarity for image quality assessment", Asilomar Conference on
Signals, Systems and Computers (2003), with its five scales and their weights, as pytorch-msssim computes it.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from aecli.configs import EvalConfig
from aecli.metrics.base import (
    EIGHT_BITS,
    Images,
    Metric,
    check_pairs,
    computed_on_arrays,
    deep_range,
    is_8_bits,
    load_pairwise,
    namespace,
)
from aecli.metrics.ssim import MIN_SIDE as WINDOW_SIDE
from aecli.metrics.ssim import converted, mean_of_map

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, the finest first
# The shortest side that is still as long as the window after four halvings, odd sides rounded up.
MIN_SIDE = (WINDOW_SIDE["gaussian"] - 1) * 2 ** (len(WEIGHTS) - 1) + 1


def build(config: EvalConfig) -> Metric:
    """Describe MS-SSIM."""
    powers = ", ".join(map(str, WEIGHTS))
    definition = (
        "MS-SSIM of an image after Wang et al. 2003: of each RGB channel the product of contrast and structure at five "
        f"scales and of luminance at the coarsest, to the powers {powers}, a negative factor taken for 0; mean over "
        "channels. Window, border and constants are SSIM's (11x11 Gaussian, 5 pixels, data range 255, K1 0.01, K2 "
        "0.03); a scale has the means of 2x2 pixels of the one before, whose odd side follows a line of zeros, as in "
        "pytorch-msssim."
    )
    score = partial(ms_ssim, data_range=deep_range(config))
    return Metric("ms-ssim", "", True, MIN_SIDE, definition, load_pairwise(score))


@computed_on_arrays
def ms_ssim(a: Images, b: Images, data_range: float = EIGHT_BITS) -> NDArray[np.float64]:
    """Multi-scale structural similarity of each pair, the mean over channels.

    Args:
        a: arrays or tensors uint8 (N, 3, H, W), or more bits as uint16 or floats, no side shorter than
            `MIN_SIDE`; ValueError for anything else.
        b: the same shape and device, of either kind.
        data_range: the highest value of those of more bits, which are measured unrounded.

    Returns:
        (N,) float64 on the CPU, from 0 to 1, of tensors a tensor; in float64 for the reasons of `ssim`.
    """
    check_pairs(a, b, MIN_SIDE)
    count, channels, height, width = a.shape
    one, other = (each.reshape(count * channels, 1, height, width) for each in (a, b))  # channels are images
    product = np.ones(len(one))
    for scale, weight in enumerate(WEIGHTS):
        is_last = scale == len(WEIGHTS) - 1
        convert = partial(converted, data_range=data_range) if scale == 0 else _unchanged
        means = mean_of_map(one, other, "gaussian", convert, channels=1, without_means=not is_last)
        product *= np.maximum(means, 0) ** weight
        if not is_last:
            one, other = _halved(one, convert), _halved(other, convert)
    means_of_channels: NDArray[np.float64] = product.reshape(count, -1).mean(axis=1)
    return means_of_channels


def _halved(images: Images, convert: Callable[[Images], Images]) -> Images:
    """Means of 2x2 pixels of images (N, 1, H, W), once converted: float32 of 8 bits, which holds them exactly."""
    height, width = images.shape[-2:]
    module, first = namespace(images), convert(images[:1])
    options = {"dtype": module.float32 if is_8_bits(first) else first.dtype, "device": images.device}
    height, width = images.shape[-2:]
    halved = module.empty((len(images), 1, -(-height // 2), -(-width // 2)), **options)
    padded = module.zeros((1, height + height % 2, width + width % 2), **options)
    for index, each in enumerate(images):  # one by one: memory does not grow with the batch
        padded[:, height % 2 :, width % 2 :] = convert(each)
        rows = padded[:, ::2] + padded[:, 1::2]
        halved[index] = (rows[..., ::2] + rows[..., 1::2]) / 4
    return halved


def _unchanged(values: Images) -> Images:
    return values
