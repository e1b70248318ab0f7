"""Structural similarity (SSIM) of images on the scale of 8 bits, over RGB or over luma.

Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural similarity", IEEE
Transactions on Image Processing 13 (2004), with the constants of that paper, as scikit-image computes it.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from aecli.configs import EvalConfig
from aecli.metrics import luma
from aecli.metrics.base import EIGHT_BITS, Metric, check_pairs, deep_range, load_pairwise, to_scale
from aecli.runtime.threads import limit_torch_threads

MIN_SIDE = {"gaussian": 11, "uniform": 7}  # of the window, and so of an image
_WINDOWS = {
    "gaussian": "Gaussian window of sigma 1.5 cut at 3.5 sigma (11x11), population covariance, 5-pixel",
    "uniform": "uniform 7x7 window, sample covariance, 3-pixel",
}

_C1 = (0.01 * 255) ** 2
_C2 = (0.03 * 255) ** 2
_SIGMA = 1.5

# The window is applied by matrix products with a band matrix, this many output rows or columns at a time. On one core
# of an AMD EPYC, 8 pairs of 256×256 take 45 ms: 958 ms by separable conv2d, 114 ms by scikit-image.
_BLOCK = 24
# float64 elements of the four filtered maps at a time: what a core's cache holds; on a GPU, what keeps it busy.
_CPU_ELEMENTS = 2**18
_GPU_ELEMENTS = 2**24

Tile = tuple[slice, slice]  # images, rows


def build(config: EvalConfig) -> Metric:
    """Describe SSIM with the window that `config` asks for."""
    return _describe("ssim", config, "pixels and RGB channels", on_luma=False)


def build_y(config: EvalConfig) -> Metric:
    """Describe SSIM of the luma with the window that `config` asks for."""
    return _describe("ssim-y", config, f"pixels of the luma {luma.DEFINITION}", on_luma=True)


def _describe(name: str, config: EvalConfig, values: str, on_luma: bool) -> Metric:
    window = config.ssim_window
    definition = (
        f"{name.upper()} of an image after Wang et al. 2004: {_WINDOWS[window]} border left out, data range 255, "
        f"K1 0.01, K2 0.03, mean over {values}."
    )
    score = partial(ssim, window=window, on_luma=on_luma, data_range=deep_range(config))
    return Metric(name, "", True, MIN_SIDE[window], definition, load_pairwise(score))


def ssim(
    a: Tensor, b: Tensor, window: str = "gaussian", on_luma: bool = False, data_range: float = EIGHT_BITS
) -> Tensor:
    """Mean structural similarity of each pair, over channels and over the positions where the whole window fits.

    Args:
        a: uint8 (N, 3, H, W), or more bits as uint16 or floats, no side shorter than `MIN_SIDE[window]`; ValueError
            for anything else.
        b: the same shape and device, of either kind.
        window: `gaussian` (11×11, σ 1.5, population covariance: the paper's) or `uniform` (7×7, sample covariance:
            scikit-image's default).
        on_luma: of the luma alone, instead of over the three channels.
        data_range: the highest value of those of more bits, which are measured unrounded.

    Returns:
        (N,) float64 on the CPU, at most 1. Computed in float64: the variances are differences of large numbers, which
        float32 gets wrong in flat bright regions by far more than 1e-6.
    """
    check_pairs(a, b, MIN_SIDE[window])
    if a.device.type == "mps":  # has no float64
        a, b = a.cpu(), b.cpu()
    convert = partial(converted, on_luma=on_luma, data_range=data_range)
    return mean_of_map(a, b, window, convert, channels=1 if on_luma else 3)


def mean_of_map(
    a: Tensor, b: Tensor, window: str, convert: Callable[[Tensor], Tensor], channels: int, without_means: bool = False
) -> Tensor:
    """Mean of the local SSIM of each pair (N, C, H, W), or `without_means` of its contrast-structure factor alone.

    `convert` makes of images values on the scale of 8 bits, of so many `channels`. The result is (N,) float64 on the
    CPU; the contrast-structure factor (2 cov + C2) / (var + var + C2) compares no means.
    """
    margin = MIN_SIDE[window] - 1
    count, _, height, width = a.shape
    tiles = _tiles(count, height, channels * width, margin, a.device)
    totals = torch.zeros(count, dtype=torch.float64, device=a.device)
    sums = _map_tiles(partial(_TileWorker, a, b, window, convert, without_means), tiles, a.device)
    for (images, _), tile_sums in zip(tiles, sums, strict=True):
        totals[images] += tile_sums
    return totals.cpu() / (channels * (height - margin) * (width - margin))


def differentiable_ssim(a: Tensor, b: Tensor) -> Tensor:
    """SSIM (N,) of float images (N, C, H, W) in [-1, 1], with the Gaussian window of `ssim`, for use as a loss.

    In float32 it agrees with `ssim` to about 1e-4. Raises ValueError for a side shorter than `MIN_SIDE["gaussian"]`.
    """
    height, width = a.shape[-2:]
    if min(height, width) < MIN_SIDE["gaussian"]:
        raise ValueError(f"images of {width}x{height} are too small for SSIM")
    rows, columns = _band(a, height), _band(a, width)

    def local_mean(values: Tensor) -> Tensor:
        return rows @ values @ columns.T

    scale = 2 / 255  # the constants are those of 8 bits
    mean_a, mean_b = local_mean(a), local_mean(b)
    variances = local_mean(a * a + b * b) - (mean_a * mean_a + mean_b * mean_b)
    covariance = local_mean(a * b) - mean_a * mean_b
    c1, c2 = _C1 * scale**2, _C2 * scale**2
    # Means on the scale from 0: [-1, 1] is shifted.
    mean_a, mean_b = mean_a + 1, mean_b + 1
    luminance = (2 * mean_a * mean_b + c1) / (mean_a * mean_a + mean_b * mean_b + c1)
    return (luminance * (2 * covariance + c2) / (variances + c2)).mean(dim=(1, 2, 3))


def _band(like: Tensor, side: int) -> Tensor:
    """The matrix (side - margin, side) whose product with a column of length `side` is the column filtered."""
    taps = _taps("gaussian")
    margin = len(taps) - 1
    offsets = torch.arange(side) - torch.arange(side - margin)[:, None]
    is_inside = (offsets >= 0) & (offsets <= margin)
    return (taps[offsets.clamp(0, margin)] * is_inside).to(like)


def converted(tile: Tensor, data_range: float, on_luma: bool = False) -> Tensor:
    """A tile of images as it is measured: on the scale of 8 bits, of three channels or of the luma."""
    values = tile if tile.dtype == torch.uint8 else to_scale(tile, data_range)
    return luma.luma(values) if on_luma else values


def _tiles(count: int, height: int, row: int, margin: int, device: torch.device) -> list[Tile]:
    """Cut (count, height, row) into groups of whole images, or one image into strips that overlap by the margin."""
    elements = _CPU_ELEMENTS if device.type == "cpu" else _GPU_ELEMENTS
    row *= 4  # maps
    images = max(1, min(count, elements // (row * height)))
    rows = height - margin
    if row * height > elements:
        rows = max(_BLOCK, (elements // row - margin) // _BLOCK * _BLOCK)
    return [
        (slice(first, min(first + images, count)), slice(top, min(top + rows + margin, height)))
        for first in range(0, count, images)
        for top in range(0, height - margin, rows)
    ]


def _map_tiles(make_worker: "partial[_TileWorker]", tiles: Sequence[Tile], device: torch.device) -> list[Tensor]:
    """Return the sums of each tile; on a CPU computed by one worker a thread, each with one thread of PyTorch's.

    PyTorch would split each of these short operations over its threads and wait for all of them: 12 times slower where
    other processes want the two cores.
    """
    threads = min(torch.get_num_threads(), len(tiles)) if device.type == "cpu" else 1
    if threads == 1:
        return make_worker().sums(tiles)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="aecli-ssim")
    with limit_torch_threads(torch.get_num_threads()), pool:
        results = list(pool.map(lambda start: make_worker().sums(tiles[start::threads]), range(threads)))
    return [results[index % threads][index // threads] for index in range(len(tiles))]


def _taps(window: str) -> Tensor:
    """The window's weights along one side; the window is their outer product."""
    side = MIN_SIDE[window]
    if window == "uniform":
        return torch.full((side,), 1 / side, dtype=torch.float64)
    distance = torch.arange(side, dtype=torch.float64) - side // 2
    weights = torch.exp(-(distance**2) / (2 * _SIGMA**2))
    return weights / weights.sum()


class _TileWorker:
    """Sums local SSIM over tiles of two batches (N, C, H, W), one tile after another in the same memory.

    With means E and P = 2·E[x]·E[y] + C1, Q = E[x]² + E[y]² + C1, the local SSIM is P·(E[2xy + C] - P) over
    Q·(E[x² + y² + C] - Q), where C = C1 + C2; the sample covariance's factor n/(n - 1) cancels but for C2, which it
    divides. So four maps are filtered: x, y, 2xy + C and x² + y² + C. `without_means`, P / Q is left out.
    """

    def __init__(
        self, a: Tensor, b: Tensor, window: str, convert: Callable[[Tensor], Tensor], without_means: bool
    ) -> None:
        self.a, self.b, self.convert, self.without_means = a, b, convert, without_means
        taps = _taps(window).to(a.device)
        self.margin = len(taps) - 1
        # Row i of the band holds the taps from column i on.
        self.band = taps.new_zeros(_BLOCK, _BLOCK + self.margin)
        for offset, weight in enumerate(taps.tolist()):
            self.band.diagonal(offset).fill_(weight)
        correction = 1.0 if window == "gaussian" else 49 / 48
        self.c1 = taps.new_tensor(_C1)
        self.c = taps.new_tensor(_C1 + _C2 / correction)
        self.buffers = [taps.new_empty(0), taps.new_empty(0)]

    def sums(self, tiles: Sequence[Tile]) -> list[Tensor]:
        """The sum over each image (n,) of each tile."""
        return [
            self._sum(*(self.convert(batch[images, :, rows]) for batch in (self.a, self.b))) for images, rows in tiles
        ]

    def _buffer(self, index: int, *shape: int) -> Tensor:
        """Return uninitialised memory, which overlaps what the same buffer held before."""
        count = torch.Size(shape).numel()
        if len(self.buffers[index]) < count:
            self.buffers[index] = self.band.new_empty(count)
        return self.buffers[index][:count].view(shape)

    def _sum(self, a: Tensor, b: Tensor) -> Tensor:
        count, channels, height, width = a.shape
        maps = self._buffer(0, height, 4, count, channels, width)
        x, y, products, squares = maps.unbind(1)
        x.copy_(a.permute(2, 0, 1, 3))
        y.copy_(b.permute(2, 0, 1, 3))
        torch.addcmul(self.c, x, y, value=2, out=products)
        torch.addcmul(self.c, x, x, out=squares).addcmul_(y, y)
        mean_x, mean_y, products, squares = self._filter(maps).unbind(1)
        p, q = self._buffer(1, 2, *mean_x.shape)
        torch.addcmul(self.c1, mean_x, mean_y, value=2, out=p)
        torch.addcmul(self.c1, mean_x, mean_x, out=q).addcmul_(mean_y, mean_y)
        products.sub_(p)
        squares.sub_(q)
        if not self.without_means:
            products.mul_(p)
            squares.mul_(q)
        sums: Tensor = products.div_(squares).sum(dim=(0, 2, 3))
        return sums

    def _filter(self, maps: Tensor) -> Tensor:
        """Filter maps (H, 4, N, C, W) of buffer 0 along H and W: (H - margin, 4, N, C, W - margin), in buffer 0."""
        height, *between, width = maps.shape
        rows, columns = height - self.margin, width - self.margin
        filtered = self._buffer(1, rows, *between, width)
        for source, target in _blocks(maps.flatten(1), filtered.flatten(1), self.margin):
            torch.mm(self.band[: len(target), : len(source)], source, out=target)
        both = self._buffer(0, rows, *between, columns)
        lines, out = filtered.view(-1, width), both.view(-1, columns)
        for source, target in _blocks(lines.T, out.T, self.margin):
            torch.mm(source.T, self.band[: len(target), : len(source)].T, out=target.T)
        return both


def _blocks(source: Tensor, target: Tensor, margin: int) -> list[tuple[Tensor, Tensor]]:
    """Views of `_BLOCK` rows of `target`, each with the rows of `source` that they depend on."""
    starts = range(0, len(target), _BLOCK)
    return [(source[start : start + _BLOCK + margin], target[start : start + _BLOCK]) for start in starts]
