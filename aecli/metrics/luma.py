"""The luma Y of an RGB image after ITU-R BT.601, from 16 to 235: what tables of super-resolution are measured on.

The matrix is that of MATLAB's `rgb2ycbcr`; values are not rounded.
"""

from typing import Any

from aecli.metrics.base import namespace

PEAK = 255.0
_WEIGHTS = (65.481 / PEAK, 128.553 / PEAK, 24.966 / PEAK)
_OFFSET = 16.0

DEFINITION = "Y = 16 + (65.481 R + 128.553 G + 24.966 B) / 255 (BT.601, 16 to 235), not rounded"


def weighted_sum(images: Any) -> Any:
    """Y without its offset: (..., 3, H, W) of any type -> float64 (..., 1, H, W)."""
    module = namespace(images)
    values = module.asarray(images, dtype=module.float64)
    red, green, blue = (values[..., channel : channel + 1, :, :] * weight for channel, weight in enumerate(_WEIGHTS))
    return red + green + blue


def luma(images: Any) -> Any:
    """Y of images (..., 3, H, W) from 0 to 255 -> float64 (..., 1, H, W) from 16 to 235."""
    return weighted_sum(images) + _OFFSET
