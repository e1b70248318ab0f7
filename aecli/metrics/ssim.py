"""Structural similarity (SSIM) of images on the scale of 8 bits, over RGB or over luma.

Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural similarity", IEEE
Transactions on Image Processing 13 (2004), with the constants of that paper, as scikit-image computes it.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aecli.configs import EvalConfig
from aecli.metrics import luma
from aecli.metrics.base import (
    EIGHT_BITS,
    Images,
    Metric,
    check_pairs,
    computed_on_arrays,
    deep_range,
    is_8_bits,
    load_pairwise,
    namespace,
    to_scale,
)
from aecli.runtime.threads import limit_threads, thread_count

if TYPE_CHECKING:
    from torch import Tensor

MIN_SIDE = {"gaussian": 11, "uniform": 7}  # of the window, and so of an image
_WINDOWS = {
    "gaussian": "Gaussian window of sigma 1.5 cut at 3.5 sigma (11x11), population covariance, 5-pixel",
    "uniform": "uniform 7x7 window, sample covariance, 3-pixel",
}

_C1 = (0.01 * 255) ** 2
_C2 = (0.03 * 255) ** 2
_SIGMA = 1.5

# The window is applied by matrix products with a band matrix, this many output rows or columns at a time: fewer waste
# fewer products with zeros, more make better use of BLAS.
_BLOCK = 16
# float64 elements of the four filtered maps at a time; on a GPU, what keeps it busy.
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


@computed_on_arrays
def ssim(
    a: Images, b: Images, window: str = "gaussian", on_luma: bool = False, data_range: float = EIGHT_BITS
) -> NDArray[np.float64]:
    """Mean structural similarity of each pair, over channels and over the positions where the whole window fits.

    Args:
        a: arrays or tensors uint8 (N, 3, H, W), or more bits as uint16 or floats, no side shorter than
            `MIN_SIDE[window]`; ValueError for anything else.
        b: the same shape and device, of either kind.
        window: `gaussian` (11×11, σ 1.5, population covariance: the paper's) or `uniform` (7×7, sample covariance:
            scikit-image's default).
        on_luma: of the luma alone, instead of over the three channels.
        data_range: the highest value of those of more bits, which are measured unrounded.

    Returns:
        (N,) float64 on the CPU, of tensors a tensor, at most 1. Computed in float64: the variances are differences of
        large numbers, which float32 gets wrong in flat bright regions by far more than 1e-6.
    """
    check_pairs(a, b, MIN_SIDE[window])
    convert = partial(converted, on_luma=on_luma, data_range=data_range)
    return mean_of_map(a, b, window, convert, channels=1 if on_luma else 3)


def mean_of_map(
    a: Images, b: Images, window: str, convert: Callable[[Images], Images], channels: int, without_means: bool = False
) -> NDArray[np.float64]:
    """Mean of the local SSIM of each pair (N, C, H, W), or `without_means` of its contrast-structure factor alone.

    `convert` makes of images values on the scale of 8 bits, of so many `channels`. The result is (N,) float64; the
    contrast-structure factor (2 cov + C2) / (var + var + C2) compares no means.
    """
    margin = MIN_SIDE[window] - 1
    count, _, height, width = a.shape
    elements, threads = (_CPU_ELEMENTS, thread_count()) if isinstance(a, np.ndarray) else (_GPU_ELEMENTS, 1)
    tiles = _tiles(count, height, channels * width, margin, elements)
    totals = np.zeros(count, dtype=np.float64)
    sums = _map_tiles(partial(_TileWorker, a, b, window, convert, without_means), tiles, threads)
    for (images, _), tile_sums in zip(tiles, sums, strict=True):
        totals[images] += tile_sums
    means: NDArray[np.float64] = totals / (channels * (height - margin) * (width - margin))
    return means


def differentiable_ssim(a: "Tensor", b: "Tensor") -> "Tensor":
    """SSIM (N,) of float images (N, C, H, W) in [-1, 1], with the Gaussian window of `ssim`, for use as a loss.

    In float32 it agrees with `ssim` to about 1e-4. Raises ValueError for a side shorter than `MIN_SIDE["gaussian"]`.
    """
    height, width = a.shape[-2:]
    if min(height, width) < MIN_SIDE["gaussian"]:
        raise ValueError(f"images of {width}x{height} are too small for SSIM")
    rows, columns = _band(a, height), _band(a, width)

    def local_mean(values: "Tensor") -> "Tensor":
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


def _band(like: "Tensor", side: int) -> "Tensor":
    """The matrix (side - margin, side) whose product with a column of length `side` is the column filtered."""
    import torch

    taps = torch.from_numpy(_taps("gaussian"))
    margin = len(taps) - 1
    offsets = torch.arange(side) - torch.arange(side - margin)[:, None]
    is_inside = (offsets >= 0) & (offsets <= margin)
    return (taps[offsets.clamp(0, margin)] * is_inside).to(like)


def converted(tile: Images, data_range: float, on_luma: bool = False) -> Images:
    """A tile of images as it is measured: on the scale of 8 bits, of three channels or of the luma."""
    values = tile if is_8_bits(tile) else to_scale(tile, data_range)
    return luma.luma(values) if on_luma else values


def _tiles(count: int, height: int, row: int, margin: int, elements: int) -> list[Tile]:
    """Cut (count, height, row) into groups of whole images, or one image into strips that overlap by the margin."""
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


def _map_tiles(make_worker: "partial[_TileWorker]", tiles: Sequence[Tile], threads: int) -> list[NDArray[np.float64]]:
    """Return the sums of each tile, computed by one worker a thread, each with one thread of BLAS's and PyTorch's.

    Split over threads, each of these short operations would wait for all of them: 12 times slower where other processes
    want the cores.
    """
    threads = min(threads, len(tiles))
    if threads == 1:
        return make_worker().sums(tiles)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="aecli-ssim")
    with limit_threads(thread_count()), pool:
        results = list(pool.map(lambda start: make_worker().sums(tiles[start::threads]), range(threads)))
    return [results[index % threads][index // threads] for index in range(len(tiles))]


def _taps(window: str) -> NDArray[np.float64]:
    """The window's weights along one side; the window is their outer product."""
    side = MIN_SIDE[window]
    if window == "uniform":
        return np.full(side, 1 / side)
    distance = np.arange(side) - side // 2
    weights: NDArray[np.float64] = np.exp(-(distance**2) / (2 * _SIGMA**2))
    weights /= weights.sum()
    return weights


class _TileWorker:
    """Sums local SSIM over tiles of two batches (N, C, H, W), one tile after another in the same memory.

    With u = x + y and v = x - y, variances V and the constants C1 and C2, the local SSIM is
    (E[u]² - E[v]² + 2·C1)·(V[u] - V[v] + 2·C2) over (E[u]² + E[v]² + 2·C1)·(V[u] + V[v] + 2·C2). So four maps are
    filtered: u, v, u² and v². The sample covariance's factor n/(n - 1) cancels but for C2, which it divides.
    `without_means`, the factors with the means are left out.
    """

    def __init__(
        self, a: Images, b: Images, window: str, convert: Callable[[Images], Images], without_means: bool
    ) -> None:
        self.a, self.b, self.convert, self.without_means = a, b, convert, without_means
        self.module = namespace(a)
        taps = _taps(window)
        self.margin = len(taps) - 1
        # Row i of the band holds the taps from column i on.
        band = np.zeros((_BLOCK, _BLOCK + self.margin))
        for row in range(_BLOCK):
            band[row, row : row + len(taps)] = taps
        self.band = self.module.asarray(band, device=a.device)
        self.c2 = _C2 if window == "gaussian" else _C2 * 48 / 49
        self.buffers = [self._empty(0), self._empty(0)]

    def _empty(self, *shape: int) -> Any:
        return self.module.empty(shape, dtype=self.module.float64, device=self.a.device)

    def sums(self, tiles: Sequence[Tile]) -> list[NDArray[np.float64]]:
        """The sum over each image (n,) of each tile."""
        sums = [
            self._sum(*(self.convert(batch[images, :, rows]) for batch in (self.a, self.b))) for images, rows in tiles
        ]
        return [each if isinstance(each, np.ndarray) else each.cpu().numpy() for each in sums]

    def _buffer(self, index: int, *shape: int) -> Any:
        """Return uninitialised memory, which overlaps what the same buffer held before."""
        count = math.prod(shape)
        if len(self.buffers[index]) < count:
            self.buffers[index] = self._empty(count)
        return self.buffers[index][:count].reshape(shape)

    def _sum(self, a: Images, b: Images) -> Any:
        module = self.module
        count, channels, height, width = a.shape
        maps = self._buffer(0, height, 4, count, channels, width)
        u, v, u_squared, v_squared = (maps[:, index] for index in range(4))
        x, y = (module.asarray(module.moveaxis(each, 2, 0), dtype=module.float64) for each in (a, b))
        module.add(x, y, out=u)
        module.subtract(x, y, out=v)
        module.multiply(u, u, out=u_squared)
        module.multiply(v, v, out=v_squared)
        filtered = self._filter(maps)
        u, v, u_squared, v_squared = (filtered[:, index] for index in range(4))
        u *= u
        v *= v
        u_squared -= u
        v_squared -= v
        structure, luminance = self._buffer(1, 2, *u.shape)
        self._split(u_squared, v_squared, 2 * self.c2, structure)
        if not self.without_means:
            self._split(u, v, 2 * _C1, luminance)
            structure *= luminance
            u_squared *= u
        structure /= u_squared
        return structure.sum((0, 2, 3))

    def _split(self, one: Any, other: Any, constant: float, difference: Any) -> None:
        """Write one - other + constant to `difference`, and one + other + constant to `one`."""
        one += constant
        self.module.subtract(one, other, out=difference)
        one += other

    def _filter(self, maps: Any) -> Any:
        """Filter maps (H, 4, N, C, W) of buffer 0 along H and W: (H - margin, 4, N, C, W - margin), in buffer 0."""
        height, *between, width = maps.shape
        rows, columns = height - self.margin, width - self.margin
        filtered = self._buffer(1, rows, math.prod(between) * width)
        for source, target in _blocks(maps.reshape(height, -1), filtered, self.margin):
            self.module.matmul(self.band[: len(target), : len(source)], source, out=target)
        both = self._buffer(0, rows * math.prod(between), columns)
        for source, target in _blocks(filtered.reshape(-1, width).T, both.T, self.margin):
            self.module.matmul(source.T, self.band[: len(target), : len(source)].T, out=target.T)
        return both.reshape(rows, *between, columns)


def _blocks(source: Any, target: Any, margin: int) -> list[tuple[Any, Any]]:
    """Views of `_BLOCK` rows of `target`, each with the rows of `source` that they depend on."""
    starts = range(0, len(target), _BLOCK)
    return [(source[start : start + _BLOCK + margin], target[start : start + _BLOCK]) for start in starts]
