"""Structural similarity of 8-bit images.

Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural similarity", IEEE
Transactions on Image Processing 13 (2004), with the constants of that paper, as scikit-image computes it.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from aecli.metrics.pairs import require_pairs

MIN_SIDE = {"gaussian": 11, "uniform": 7}

_C1 = (0.01 * 255) ** 2
_C2 = (0.03 * 255) ** 2
_SIGMA = 1.5

# A filter is applied as a product with a band matrix, this many outputs at a time: matrix units make up for the zeros
# in it as long as the band is a fair part of the matrix.
_BLOCK = 24
# Elements of the four maps worked on at once: as much as a core's cache holds; on other devices, what keeps them busy.
_CPU_PIECE = 2**19
_DEVICE_PIECE = 2**24

Piece = tuple[slice, slice]  # planes, rows


def ssim(a: Tensor, b: Tensor, window: str = "gaussian") -> Tensor:
    """Mean structural similarity of each pair, over channels and over the places where the whole window fits.

    Args:
        a: uint8 (N, 3, H, W).
        b: the same shape and device.
        window: `gaussian` (11×11, σ 1.5, population covariance: the paper's) or `uniform` (7×7, sample covariance:
            what scikit-image does when nothing is asked).

    Returns:
        (N,) float64 on the CPU, at most 1. The arithmetic is float64: the variances are differences of large
        numbers, which float32 gets wrong in flat bright places by far more than 1e-6.

    Raises:
        ValueError: the shapes differ, a side is shorter than `MIN_SIDE[window]`, or the images are not uint8
            (N, 3, H, W).
    """
    require_pairs(a, b, MIN_SIDE[window])
    if a.device.type == "mps":  # has no float64
        a, b = a.cpu(), b.cpu()
    # The sample covariance divides by one less than the number of pixels in the window.
    correction = 1.0 if window == "gaussian" else 49 / 48
    sums = partial(_ssim_sums, band=_band(_taps(window)).to(a.device), correction=correction)
    flat_a, flat_b = a.flatten(0, 1), b.flatten(0, 1)
    pieces = _pieces(len(flat_a), a.shape[2], a.shape[3], MIN_SIDE[window] - 1, a.device)
    found = _map_pieces(lambda piece: sums(flat_a[piece], flat_b[piece]), pieces, a.device)
    totals = torch.zeros(len(flat_a), dtype=torch.float64, device=a.device)
    for (planes, _), partial_sums in zip(pieces, found, strict=True):
        totals[planes] += partial_sums
    places = (a.shape[2] - MIN_SIDE[window] + 1) * (a.shape[3] - MIN_SIDE[window] + 1)
    return totals.view(a.shape[:2]).mean(dim=1).cpu() / places


def _pieces(planes: int, height: int, width: int, reach: int, device: torch.device) -> list[Piece]:
    """Cut (planes, height, width) into pieces of some planes and rows; strips of rows overlap by the filter's reach."""
    elements = _CPU_PIECE if device.type == "cpu" else _DEVICE_PIECE
    depth = max(1, min(planes, elements // (4 * (_BLOCK + reach) * width)))
    rows = max(_BLOCK, elements // (4 * depth * width) - reach)
    return [
        (slice(plane, plane + depth), slice(top, top + rows + reach))
        for plane in range(0, planes, depth)
        for top in range(0, height - reach, rows)
    ]


def _map_pieces(function: Callable[[Piece], Tensor], pieces: Sequence[Piece], device: torch.device) -> list[Tensor]:
    """Work on the pieces; on a CPU one a thread, PyTorch itself keeping to one thread meanwhile.

    PyTorch would share out each of these short operations, and wait for all threads at the end of each: ten times
    slower and more as soon as anything else, such as decoding, wants a core.
    """
    if device.type != "cpu":
        return [function(piece) for piece in pieces]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(min(threads, len(pieces)), thread_name_prefix="aecli-ssim") as pool:
            return list(pool.map(function, pieces))
    finally:
        torch.set_num_threads(threads)


def _taps(window: str) -> Tensor:
    """The window's weights along one side; the window is their outer product."""
    side = MIN_SIDE[window]
    if window == "uniform":
        return torch.full((side,), 1 / side, dtype=torch.float64)
    distance = torch.arange(side, dtype=torch.float64) - side // 2
    weights = torch.exp(-(distance**2) / (2 * _SIGMA**2))
    return weights / weights.sum()


def _ssim_sums(a: Tensor, b: Tensor, band: Tensor, correction: float) -> Tensor:
    """The sum of the local SSIM over each plane: uint8 (P, H, W) pairs -> float64 (P,)."""
    maps = torch.empty((4, *a.shape), dtype=torch.float64, device=a.device)
    x, y, squares, products = maps
    x.copy_(a)
    y.copy_(b)
    torch.mul(x, y, out=products)
    torch.mul(x, x, out=squares).addcmul_(y, y)  # both variances are only ever needed as a sum
    means = _filter(_filter(maps.flatten(0, 1), band, dim=1), band, dim=2)
    mean_x, mean_y, squares, products = means.view(4, len(a), *means.shape[1:])
    mean_product = mean_x * mean_y
    mean_squares = mean_x.square_().addcmul_(mean_y, mean_y)
    contrast = products.sub_(mean_product).mul_(2 * correction).add_(_C2)
    spread = squares.sub_(mean_squares).mul_(correction).add_(_C2)
    numerator = mean_product.mul_(2).add_(_C1).mul_(contrast)
    similarity: Tensor = numerator.div_(mean_squares.add_(_C1).mul_(spread))
    return similarity.sum(dim=(1, 2))


def _band(taps: Tensor) -> Tensor:
    """The (B, B + taps - 1) matrix whose row i holds the taps from column i on."""
    band = taps.new_zeros(_BLOCK, _BLOCK + len(taps) - 1)
    for offset, weight in enumerate(taps.tolist()):
        band.diagonal(offset).fill_(weight)
    return band


def _filter(maps: Tensor, band: Tensor, dim: int) -> Tensor:
    """Correlate (P, H, W) with the band's taps along dimension 1 or 2, keeping places where all of them fit."""
    reach = band.shape[1] - band.shape[0]
    shape = list(maps.shape)
    shape[dim] -= reach
    filtered = maps.new_empty(shape)
    for start in range(0, shape[dim], _BLOCK):
        length = min(_BLOCK, shape[dim] - start)
        weights = band[:length, : length + reach]
        block = maps.narrow(dim, start, length + reach)
        filtered.narrow(dim, start, length).copy_(weights @ block if dim == 1 else block @ weights.T)
    return filtered
