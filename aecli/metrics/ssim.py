"""Structural similarity of 8-bit images.

Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural similarity", IEEE
Transactions on Image Processing 13 (2004), with the constants of that paper, as scikit-image computes it.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from aecli.metrics.pairs import require_pairs
from aecli.runtime.threads import limit_torch_threads

MIN_SIDE = {"gaussian": 11, "uniform": 7}

_C1 = (0.01 * 255) ** 2
_C2 = (0.03 * 255) ** 2
_SIGMA = 1.5

# A filter is applied as a product with a band matrix, this many outputs at a time: matrix units make up for the zeros
# in it as long as the band is a fair part of the matrix.
_BLOCK = 16
# Elements of the four maps worked on at once: as much as a core's cache holds; on other devices, what keeps them busy.
_CPU_PIECE = 2**18
_DEVICE_PIECE = 2**24

MicroBatch = tuple[slice, slice]  # images, rows


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
    reach = MIN_SIDE[window] - 1
    count, channels, height, width = a.shape
    pieces = _pieces(count, height, width, reach, a.device)
    work = partial(_Worker, a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1), window)
    totals = torch.zeros(count, dtype=torch.float64, device=a.device)
    for (images, _), sums in zip(pieces, _map_pieces(work, pieces, a.device), strict=True):
        totals[images] += sums
    return totals.cpu() / (channels * (height - reach) * (width - reach))


def _pieces(count: int, height: int, width: int, reach: int, device: torch.device) -> list[MicroBatch]:
    """Cut (count, height, width) into some images, or rows of one; strips of rows overlap by the filter's reach."""
    elements = _CPU_PIECE if device.type == "cpu" else _DEVICE_PIECE
    row = 4 * 3 * _padded(width)
    images = max(1, min(count, elements // (row * height)))
    rows = height - reach
    if row * height > elements:
        rows = max(_BLOCK, (elements // row - reach) // _BLOCK * _BLOCK)
    return [
        (slice(first, min(first + images, count)), slice(top, min(top + rows + reach, height)))
        for first in range(0, count, images)
        for top in range(0, height - reach, rows)
    ]


def _padded(width: int) -> int:
    return -(-width // _BLOCK) * _BLOCK


def _map_pieces(work: "partial[_Worker]", pieces: Sequence[MicroBatch], device: torch.device) -> list[Tensor]:
    """Work on the pieces; on a CPU with one worker a thread, PyTorch itself keeping to one thread meanwhile.

    PyTorch would share out each of these short operations, and wait for all threads at the end of each: ten times
    slower and more as soon as anything else, such as decoding, wants a core.
    """
    threads = min(torch.get_num_threads(), len(pieces)) if device.type == "cpu" else 1
    if threads == 1:
        return work().sums(pieces)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="aecli-ssim")
    with limit_torch_threads(torch.get_num_threads()), pool:
        shares = list(pool.map(lambda start: work().sums(pieces[start::threads]), range(threads)))
    return [shares[index % threads][index // threads] for index in range(len(pieces))]


def _taps(window: str) -> Tensor:
    """The window's weights along one side; the window is their outer product."""
    side = MIN_SIDE[window]
    if window == "uniform":
        return torch.full((side,), 1 / side, dtype=torch.float64)
    distance = torch.arange(side, dtype=torch.float64) - side // 2
    weights = torch.exp(-(distance**2) / (2 * _SIGMA**2))
    return weights / weights.sum()


class _Worker:
    """Sums the local SSIM of pieces of uint8 (N, H, W, 3), one after another in the same memory.

    With means E and P = 2·E[x]·E[y] + C1, Q = E[x]² + E[y]² + C1, the local SSIM is P·(E[2xy + C] - P) over
    Q·(E[x² + y² + C] - Q), where C = C1 + C2; the sample covariance's factor n/(n - 1) cancels but for C2, which it
    divides. So four maps are filtered: x, y, 2xy + C and x² + y² + C.
    """

    def __init__(self, a: Tensor, b: Tensor, window: str) -> None:
        self.a, self.b = a, b
        taps = _taps(window).to(a.device)
        self.reach = len(taps) - 1
        # Row i of the band holds the taps from column i on.
        self.band = taps.new_zeros(_BLOCK, _BLOCK + self.reach)
        for offset, weight in enumerate(taps.tolist()):
            self.band.diagonal(offset).fill_(weight)
        correction = 1.0 if window == "gaussian" else 49 / 48
        self.c1 = taps.new_tensor(_C1)
        self.c = taps.new_tensor(_C1 + _C2 / correction)
        self.memory: dict[str, Tensor] = {}

    def sums(self, pieces: Sequence[MicroBatch]) -> list[Tensor]:
        """The sum over each image (n,) of each piece."""
        return [self._sum(self.a[piece], self.b[piece]) for piece in pieces]

    def _take(self, name: str, count: int) -> Tensor:
        """Flat float64 memory; it holds what was left there, finite numbers always."""
        if name not in self.memory or len(self.memory[name]) < count:
            self.memory[name] = self.band.new_zeros(count)
        return self.memory[name][:count]

    def _sum(self, a: Tensor, b: Tensor) -> Tensor:
        count, height, width, channels = a.shape
        padded = _padded(width)
        rows = height - self.reach
        maps = self._take(f"maps of {count}", height * 4 * count * padded * channels).view(height, 4, count, padded, -1)
        x, y, products, squares = maps[:, :, :, :width].unbind(1)
        x.copy_(a.transpose(0, 1))
        y.copy_(b.transpose(0, 1))
        torch.addcmul(self.c, x, y, value=2, out=products)
        torch.addcmul(self.c, x, x, out=squares).addcmul_(y, y)
        down = self._filter_down(maps.view(height, -1), rows)
        across = self._filter_across(down, rows * channels).view(4, count, padded, -1)
        mean_x, mean_y, products, squares = across[:, :, : width - self.reach]
        p, q = down[: 2 * mean_x.numel()].view(2, *mean_x.shape)
        torch.addcmul(self.c1, mean_x, mean_y, value=2, out=p)
        torch.addcmul(self.c1, mean_x, mean_x, out=q).addcmul_(mean_y, mean_y)
        p.mul_(products.sub_(p))
        q.mul_(squares.sub_(q))
        sums: Tensor = p.div_(q).sum(dim=(1, 2))
        return sums

    def _filter_down(self, maps: Tensor, rows: int) -> Tensor:
        """Filter (rows + reach, columns) along the rows; the result, flat, is transposed: (columns, rows)."""
        columns = maps.shape[1]
        flat = self._take("down", (columns + self.reach * 3) * rows)
        filtered = flat[: columns * rows].view(columns, rows)
        for top in range(0, rows, _BLOCK):
            length = min(_BLOCK, rows - top)
            band = self.band[:length, : length + self.reach]
            torch.mm(maps[top : top + length + self.reach].T, band.T, out=filtered[:, top : top + length])
        return flat

    def _filter_across(self, flat: Tensor, row: int) -> Tensor:
        """Filter lines of `row` elements along all lines, as if the maps' images were one long column.

        Where a window spans the end of one and the start of the next the result means nothing.
        """
        blocks = (len(flat) // row - self.reach) // _BLOCK
        windows = flat.as_strided((blocks, _BLOCK + self.reach, row), (_BLOCK * row, row, 1))
        filtered = self._take("across", blocks * _BLOCK * row).view(blocks, _BLOCK, row)
        return torch.bmm(self.band.expand(blocks, -1, -1), windows, out=filtered)
