"""Convolutions as matrix products of patches (im2col: Chellapilla et al., IWFHR 2006), for large kernels on CPUs.

oneDNN's kernels go through the whole weight once an image. Where that exceeds the cache and an image has few positions,
they wait for memory: on a core with AVX2 a weight's gradient takes 1.5 to 6 times as long as this one product for all
images, and on grids of 2×2 the other two passes take 2.5 to 4 times as long (tests/benchmarks/RESULTS.md).

Below, a convolution maps values (N, C, H, W) with a weight (K, C, side, side) to (N, K, h, w).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_LEAST_WEIGHT = 2**19  # elements; smaller ones stay in the cache
_MOST_POSITIONS = 4  # an image, for the passes that oneDNN does well on larger grids
_MOST_ELEMENTS = 2**24  # of the patches in memory at a time


@dataclass(frozen=True)
class Geometry:
    """Stride and padding of a convolution, by rows and columns."""

    stride: tuple[int, int]
    padding: tuple[int, int]

    def grid(self, values: Tensor, weight: Tensor) -> tuple[int, int]:
        """Return the height and width of the result."""
        sizes = zip(values.shape[2:], weight.shape[2:], self.stride, self.padding, strict=True)
        height, width = ((size + 2 * padding - side) // stride + 1 for size, side, stride, padding in sizes)
        return height, width


def suits(weight: Tensor) -> bool:
    """Whether the gradient of this weight is better computed here."""
    return weight.device.type == "cpu" and weight.numel() >= _LEAST_WEIGHT


def suits_grid(height: int, width: int) -> bool:
    """Whether the other two passes are, too, where the result has this size."""
    return height * width <= _MOST_POSITIONS


def convolve(values: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Return the convolution (N, K, h, w)."""
    kernel = _flat(weight)
    made = [F.linear(_patches(part, weight, geometry), kernel, bias) for (part,) in _parts(weight, geometry, values)]
    height, width = geometry.grid(values, weight)
    return torch.cat(made).view(len(values), height, width, len(weight)).permute(0, 3, 1, 2)


def values_gradient(gradient: Tensor, weight: Tensor, geometry: Geometry, height: int, width: int) -> Tensor:
    """Return the gradient (N, C, height, width) of values, from that of a convolution's result.

    It is a transposed convolution, too, whose output has that size.
    """
    (rows, columns), (top, left) = geometry.stride, geometry.padding
    count, kernels, down, across = gradient.shape
    side_down, side_across = weight.shape[2:]
    products = _rows(gradient) @ _flat(weight)
    patches = products.view(count, down, across, side_down, side_across, weight.shape[1])
    padded = gradient.new_zeros(count, height + 2 * top, width + 2 * left, weight.shape[1])
    for i in range(side_down):
        for j in range(side_across):
            padded[:, i : i + rows * down : rows, j : j + columns * across : columns] += patches[:, :, :, i, j]
    return padded[:, top : top + height, left : left + width].permute(0, 3, 1, 2)


def weight_gradient(gradient: Tensor, values: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return the gradient of a weight, from that of the result and the values."""
    total: Tensor | None = None
    for part, of_values in _parts(weight, geometry, gradient, values):
        rows, patches = _rows(part), _patches(of_values, weight, geometry)
        total = rows.T @ patches if total is None else total.addmm_(rows.T, patches)
    assert total is not None  # there is an image
    kernels, channels, down, across = weight.shape
    return total.view(kernels, down, across, channels).permute(0, 3, 1, 2)


def _flat(weight: Tensor) -> Tensor:
    """Return (K, side·side·C): no copy of a channels_last weight."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def _rows(values: Tensor) -> Tensor:
    """Return values (N, C, h, w) as (N·h·w, C): no copy of channels_last ones."""
    return values.permute(0, 2, 3, 1).reshape(-1, values.shape[1])


def _patches(values: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return the patch behind each position, (N·h·w, side·side·C)."""
    (rows, columns), (top, left) = geometry.stride, geometry.padding
    padded = F.pad(values.permute(0, 2, 3, 1), (0, 0, left, left, top, top))
    windows = padded.unfold(1, weight.shape[2], rows).unfold(2, weight.shape[3], columns)  # (N, h, w, C, side, side)
    return windows.permute(0, 1, 2, 4, 5, 3).reshape(-1, weight[0].numel())


def _parts(weight: Tensor, geometry: Geometry, *batches: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut batches into parts of as many images as have so many patches; the last are a convolution's values."""
    height, width = geometry.grid(batches[-1], weight)
    count = max(1, _MOST_ELEMENTS // (height * width * weight[0].numel()))
    return zip(*(torch.split(batch, count) for batch in batches), strict=True)
