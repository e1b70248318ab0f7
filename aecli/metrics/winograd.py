"""Convolutions in fewer multiplications, for processors, whose libraries multiply everything out.

Winograd, "Arithmetic complexity of computations" (1980); Lavin and Gray, "Fast algorithms for convolutional neural
networks", CVPR 2016. A tile of m×m outputs takes (m + r - 1)² products a pair of channels instead of m²·r²: a quarter
of them for 3×3 filters and m = 4, a sixth for 5×5. The products of all tiles are one matrix product a place.
"""

from typing import TypeGuard, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Where the polynomials behind the tile and the filter are evaluated, by the filter's side; the last point is infinity.
# Small points of unlike size keep the rounding near that of plain float32.
_POINTS = {3: (0.0, 1.0, -1.0, 0.5, -2.0), 5: (0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0)}
_TILE = 4
# At the point 1 a polynomial is the sum of its coefficients: what is added there is added to all outputs alike.
_ONE = 1
# Fewer channels give matrices too narrow to be worth the detour.
_MIN_CHANNELS = 32
# Elements of the transformed tiles worked on at once.
_PIECE = 2**20


def suits_winograd(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a layer is a convolution of the kind that `WinogradConv2d` computes, and computes faster."""
    return (
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size in ((3, 3), (5, 5))
        and layer.padding == (layer.kernel_size[0] // 2,) * 2
        and layer.stride == layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.in_channels >= _MIN_CHANNELS
    )


class WinogradConv2d(nn.Module):
    """A 3×3 or 5×5 convolution of stride 1 that keeps the size of its input, (N, C, H, W) float32 on a CPU."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        """Transform a convolution's weights, once; see `suits_winograd`."""
        super().__init__()
        self.convolution = convolution
        self.padding = convolution.kernel_size[0] // 2
        inputs, filters, outputs = _transforms(convolution.kernel_size[0])
        weight = convolution.weight.detach().double().permute(2, 3, 1, 0)  # (r, r, C, K)
        transformed = torch.kron(filters, filters) @ weight.flatten(0, 1).flatten(1)
        self.weight = nn.Buffer(transformed.float().view(-1, *weight.shape[2:]))
        self.bias = cast(Tensor, convolution.bias)
        self.to_points = nn.Buffer(torch.kron(inputs, inputs).float())
        self.from_points = nn.Buffer(torch.kron(outputs, outputs).float())
        self.points = len(inputs)

    def forward(self, values: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K, H, W), in the layout channels_last."""
        count, channels, height, width = values.shape
        rows, columns = -(-height // _TILE), -(-width // _TILE)
        if rows * columns * self.points**2 > height * width * (2 * self.padding + 1) ** 2:  # a tile's corner, no more
            return cast(Tensor, self.convolution(values))
        before, after = self.padding, self.padding
        padding = (0, 0, before, after + columns * _TILE - width, before, after + rows * _TILE - height)
        padded = F.pad(values.permute(0, 2, 3, 1), padding)
        tiles = padded.unfold(1, self.points, _TILE).unfold(2, self.points, _TILE)  # (N, rows, columns, C, n, n)
        made = values.new_empty(count, rows, _TILE, columns, _TILE, len(self.bias))
        at_once = max(1, _PIECE // (count * columns * self.points**2 * max(channels, len(self.bias))))
        for top in range(0, rows, at_once):
            piece = tiles[:, top : top + at_once]
            places = count * piece.shape[1] * columns
            flat = piece.permute(4, 5, 0, 1, 2, 3).reshape(self.points**2, places * channels)
            products = torch.bmm((self.to_points @ flat).view(-1, places, channels), self.weight)
            products[_ONE * self.points + _ONE].add_(self.bias)
            found = (self.from_points @ products.flatten(1)).view(_TILE, _TILE, count, -1, columns, len(self.bias))
            made[:, top : top + at_once] = found.permute(2, 3, 0, 4, 1, 5)
        whole = made.view(count, rows * _TILE, columns * _TILE, -1)
        return whole[:, :height, :width].permute(0, 3, 1, 2)


def _transforms(side: int) -> tuple[Tensor, Tensor, Tensor]:
    """The matrices, float64, that take a line of inputs (n, n), of a filter (n, r), and give a line of outputs (m, n).

    Toom and Cook's multiplication of polynomials, transposed: with V(k) the powers 0 to k - 1 of the points, outputs
    are V(m)ᵀ·[(V(r)·filter) ∘ (V(n)⁻ᵀ·inputs)]. Each row of the middle one is scaled to 1, the filter's inversely.
    """
    points = len(_POINTS[side]) + 1
    inputs = torch.linalg.inv(_powers(side, points)).T
    scale = inputs.abs().amax(dim=1, keepdim=True)
    return inputs / scale, _powers(side, side) * scale, _powers(side, _TILE).T


def _powers(side: int, count: int) -> Tensor:
    """Powers 0 to count - 1 of each point; of infinity only the highest counts."""
    finite = torch.tensor(_POINTS[side], dtype=torch.float64)
    infinity = torch.zeros(1, count, dtype=torch.float64)
    infinity[0, -1] = 1
    return torch.cat([finite[:, None] ** torch.arange(count), infinity])
