"""Photographs as tensors."""

import skimage.data
import torch


def photographs(count: int, side: int) -> torch.Tensor:
    """Pieces of scikit-image's photograph of an astronaut, float32 (N, 3, side, side) in [-1, 1]."""
    whole = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1).float().div(127.5).sub(1)
    columns = 512 // side
    places = [(number // columns * side, number % columns * side) for number in range(count)]
    return torch.stack([whole[:, top : top + side, left : left + side] for top, left in places])
