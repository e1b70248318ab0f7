"""What every metric asks of the two batches that it is given."""

import torch
from torch import Tensor


def require_images(images: Tensor, min_side: int) -> None:
    """Refuse what is not uint8 (N, 3, H, W) with N, H and W of at least 1 and both sides of at least `min_side`.

    Raises:
        ValueError: saying what was given instead.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
        raise ValueError(f"expected uint8 (N, 3, H, W), not {images.dtype} {tuple(images.shape)}")
    height, width = images.shape[-2:]
    if min(height, width) < min_side:
        raise ValueError(f"images of {width}x{height} are too small: this metric needs {min_side} pixels a side")


def require_pairs(a: Tensor, b: Tensor, min_side: int) -> None:
    """Refuse two batches that can't be compared image by image; raises ValueError like `require_images`."""
    require_images(a, min_side)
    require_images(b, min_side)
    if a.shape != b.shape:
        raise ValueError(f"expected pairs of one shape, not {tuple(a.shape)} and {tuple(b.shape)}")
