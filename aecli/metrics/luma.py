"""The luma Y of an RGB image after ITU-R BT.601, from 16 to 235: what tables of super-resolution are measured on.

The matrix is that of MATLAB's `rgb2ycbcr`; values are not rounded.
"""

from torch import Tensor

PEAK = 255.0
_WEIGHTS = (65.481 / PEAK, 128.553 / PEAK, 24.966 / PEAK)
_OFFSET = 16.0

DEFINITION = "Y = 16 + (65.481 R + 128.553 G + 24.966 B) / 255 (BT.601, 16 to 235), not rounded"


def weighted_sum(images: Tensor) -> Tensor:
    """Y without its offset: (..., 3, H, W) of any type -> float64 (..., 1, H, W)."""
    red, green, blue = images.double().unbind(-3)
    return (red * _WEIGHTS[0]).add_(green, alpha=_WEIGHTS[1]).add_(blue, alpha=_WEIGHTS[2]).unsqueeze(-3)


def luma(images: Tensor) -> Tensor:
    """Y of images (..., 3, H, W) from 0 to 255 -> float64 (..., 1, H, W) from 16 to 235."""
    return weighted_sum(images).add_(_OFFSET)
