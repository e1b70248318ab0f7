"""Structural similarity of 8-bit images.

Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural similarity", IEEE
Transactions on Image Processing 13 (2004), with the constants of that paper, as scikit-image computes it.
"""

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
_CPU_PIECE = 2**17
_DEVICE_PIECE = 2**24


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
    taps = _taps(window).to(a.device)
    # The sample covariance divides by one less than the number of pixels in the window.
    correction = 1.0 if window == "gaussian" else 49 / 48
    count, channels, height, width = a.shape
    reach = len(taps) - 1
    piece = _CPU_PIECE if a.device.type == "cpu" else _DEVICE_PIECE
    planes = max(1, min(count * channels, piece // (4 * (_BLOCK + reach) * width)))
    rows = max(_BLOCK, piece // (4 * planes * width) - reach)
    sums = torch.zeros(count * channels, dtype=torch.float64, device=a.device)
    flat_a, flat_b = a.flatten(0, 1), b.flatten(0, 1)
    for plane in range(0, count * channels, planes):
        chosen = slice(plane, plane + planes)
        for top in range(0, height - reach, rows):
            strip = slice(top, top + rows + reach)
            sums[chosen] += _ssim_sums(flat_a[chosen, strip], flat_b[chosen, strip], taps, correction)
    return sums.view(count, channels).mean(dim=1).cpu() / ((height - reach) * (width - reach))


def _taps(window: str) -> Tensor:
    """The window's weights along one side; the window is their outer product."""
    side = MIN_SIDE[window]
    if window == "uniform":
        return torch.full((side,), 1 / side, dtype=torch.float64)
    distance = torch.arange(side, dtype=torch.float64) - side // 2
    weights = torch.exp(-(distance**2) / (2 * _SIGMA**2))
    return weights / weights.sum()


def _ssim_sums(a: Tensor, b: Tensor, taps: Tensor, correction: float) -> Tensor:
    """The sum of the local SSIM over each plane: uint8 (P, H, W) pairs -> float64 (P,)."""
    maps = torch.empty((4, *a.shape), dtype=torch.float64, device=a.device)
    x, y, squares, products = maps
    x.copy_(a)
    y.copy_(b)
    torch.mul(x, y, out=products)
    torch.mul(x, x, out=squares).addcmul_(y, y)  # both variances are only ever needed as a sum
    band = _band(taps)
    means = _filter(_filter(maps.flatten(0, 1), band, dim=1), band, dim=2)
    mean_x, mean_y, squares, products = means.unflatten(0, (4, -1))
    mean_product = mean_x * mean_y
    mean_squares = mean_x.square_().addcmul_(mean_y, mean_y)
    contrast = products.sub_(mean_product).mul_(2 * correction).add_(_C2)
    spread = squares.sub_(mean_squares).mul_(correction).add_(_C2)
    numerator = mean_product.mul_(2).add_(_C1).mul_(contrast)
    return numerator.div_(mean_squares.add_(_C1).mul_(spread)).sum(dim=(1, 2))


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
