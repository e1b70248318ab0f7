"""Multi-scale structural similarity (MS-SSIM) of images on the scale of 8 bits.

Wang, Simoncelli and Bovik, "Multi-scale structural similarity for image quality assessment", Asilomar Conference on
Signals, Systems and Computers (2003), with its five scales and their weights, as pytorch-msssim computes it.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from aecli.configs import EvalConfig
from aecli.metrics.base import EIGHT_BITS, Metric, check_pairs, deep_range, load_pairwise
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


def ms_ssim(a: Tensor, b: Tensor, data_range: float = EIGHT_BITS) -> Tensor:
    """Multi-scale structural similarity of each pair, the mean over channels.

    Args:
        a: uint8 (N, 3, H, W), or more bits as uint16 or floats, no side shorter than `MIN_SIDE`; ValueError for
            anything else.
        b: the same shape and device, of either kind.
        data_range: the highest value of those of more bits, which are measured unrounded.

    Returns:
        (N,) float64 on the CPU, from 0 to 1; in float64 for the reasons of `ssim`.
    """
    check_pairs(a, b, MIN_SIDE)
    if a.device.type == "mps":  # has no float64
        a, b = a.cpu(), b.cpu()
    count = len(a)
    one, other = (each.flatten(0, 1).unsqueeze(1) for each in (a, b))  # channels are images of their own
    product = torch.ones(len(one), dtype=torch.float64)
    for scale, weight in enumerate(WEIGHTS):
        is_last = scale == len(WEIGHTS) - 1
        convert = partial(converted, data_range=data_range) if scale == 0 else _unchanged
        means = mean_of_map(one, other, "gaussian", convert, channels=1, without_means=not is_last)
        product *= means.clamp_(min=0) ** weight
        if not is_last:
            one, other = _halved(one, convert), _halved(other, convert)
    return product.view(count, -1).mean(dim=1)


def _halved(images: Tensor, convert: Callable[[Tensor], Tensor]) -> Tensor:
    """Means of 2x2 pixels of images (N, 1, H, W), once converted: float32 of 8 bits, which holds them exactly."""
    height, width = images.shape[-2:]
    first = convert(images[:1])
    halved = torch.empty(
        (len(images), 1, -(-height // 2), -(-width // 2)),
        dtype=torch.float32 if first.dtype == torch.uint8 else first.dtype, device=images.device,
    )  # fmt: skip
    for index, each in enumerate(images):  # one by one: memory does not grow with the batch
        values = convert(each).to(halved.dtype)
        halved[index] = F.avg_pool2d(values, 2, padding=(height % 2, width % 2))
    return halved


def _unchanged(values: Tensor) -> Tensor:
    return values
