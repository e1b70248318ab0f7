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
from aecli.runtime.threads import single_threaded_blas, thread_count

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
# Elements of the four filtered maps at a time: what stays in a core's cache; on a GPU, what keeps it busy.
_CPU_ELEMENTS = 2**18
_GPU_ELEMENTS = 2**24

# In float32, rounding moves a variance by about 1e-7 of the squared mean. This bound of the mean ratio of squares to
# variances keeps the SSIM of any image within 1e-6; that of 360 pairs of photographs came within 1.2e-7.
_MAX_RISK = 3.0
_MIN_PIXELS = 2**14  # of an image; smaller ones have too few positions for errors of any sign to cancel
_FLAT = 0.25  # a variance below this may be nothing but rounding

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
        (N,) float64 on the CPU, of tensors a tensor, at most 1. On a CPU, RGB of 8 bits under the Gaussian window,
        unless small, is computed in float32, but in float64 where its rounding could show: see `_TileWorker`.
    """
    check_pairs(a, b, MIN_SIDE[window])
    convert = partial(converted, on_luma=on_luma, data_range=data_range)
    is_rgb = is_8_bits(a) and is_8_bits(b) and not on_luma
    is_large = a.shape[-2] * a.shape[-1] >= _MIN_PIXELS
    in_float32 = is_rgb and is_large and isinstance(a, np.ndarray) and window == "gaussian"
    return mean_of_map(a, b, window, convert, channels=1 if on_luma else 3, in_float32=in_float32)


def mean_of_map(
    a: Images,
    b: Images,
    window: str,
    convert: Callable[[Images], Images],
    channels: int,
    without_means: bool = False,
    in_float32: bool = False,
) -> NDArray[np.float64]:
    """Mean of the local SSIM of each pair (N, C, H, W), or `without_means` of its contrast-structure factor alone.

    `convert` makes of images values on the scale of 8 bits, of so many `channels`. The result is (N,) float64; the
    contrast-structure factor (2 cov + C2) / (var + var + C2) compares no means. Computed in float64, or `in_float32`
    where that is safe.
    """
    margin = MIN_SIDE[window] - 1
    count, _, height, width = a.shape
    elements, threads = (_CPU_ELEMENTS, thread_count()) if isinstance(a, np.ndarray) else (_GPU_ELEMENTS, 1)
    tiles = _tiles(count, height, channels * width, margin, elements)
    totals = np.zeros(count, dtype=np.float64)
    sums = _map_tiles(partial(_TileWorker, a, b, window, convert, without_means, in_float32), tiles, threads)
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
    """Return the sums of each tile, computed by one worker a thread, in which BLAS computes too.

    Split over threads, each of these short operations would wait for all of them: 12 times slower where other processes
    want the cores.
    """
    threads = min(threads, len(tiles))
    if threads == 1:
        return make_worker().sums(tiles)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="aecli-ssim")
    with single_threaded_blas(), pool:
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

    Variances are differences of large numbers, which float32 gets wrong in flat regions by far more than 1e-6. But a
    wrong V[u] or V[v] moves the ratio little where two images are alike. `in_float32`, a tile is computed anew in
    float64 where the squared means, about a mean of the tile, are large for the variances.
    """

    def __init__(
        self,
        a: Images,
        b: Images,
        window: str,
        convert: Callable[[Images], Images],
        without_means: bool,
        in_float32: bool,
    ) -> None:
        self.a, self.b, self.convert, self.without_means = a, b, convert, without_means
        self.module = namespace(a)
        taps = _taps(window)
        self.margin = len(taps) - 1
        # Row i of the band holds the taps from column i on.
        self.band = np.zeros((_BLOCK, _BLOCK + self.margin))
        for row in range(_BLOCK):
            self.band[row, row : row + len(taps)] = taps
        self.c2 = _C2 if window == "gaussian" else _C2 * 48 / 49
        self.is_safe = not in_float32
        self._use("float32" if in_float32 else "float64")

    def _use(self, dtype: str) -> None:
        """Compute in `dtype` from now on."""
        self.dtype = getattr(self.module, dtype)
        self.typed_band = self.module.asarray(self.band, dtype=self.dtype, device=self.a.device)
        self.buffers = [self._empty(0), self._empty(0)]

    def _empty(self, *shape: int) -> Any:
        return self.module.empty(shape, dtype=self.dtype, device=self.a.device)

    def sums(self, tiles: Sequence[Tile]) -> list[NDArray[np.float64]]:
        """The sum over each image (n,) of each tile."""
        sums = [self._sum(*(self._tile(batch, tile) for batch in (self.a, self.b))) for tile in tiles]
        if not self.is_safe and (unsafe := [index for index, found in enumerate(sums) if found is None]):
            self.is_safe = True
            self._use("float64")
            for index, found in zip(unsafe, self.sums([tiles[index] for index in unsafe]), strict=True):
                sums[index] = found
        return [each if isinstance(each, np.ndarray) else each.cpu().numpy() for each in sums]

    def _tile(self, batch: Images, tile: Tile) -> Images:
        """The values (n, H, W, C) of a tile."""
        images, rows = tile
        return self.module.moveaxis(self.convert(batch[images, :, rows]), 1, -1)

    def _buffer(self, index: int, *shape: int) -> Any:
        """Return uninitialised memory, which overlaps what the same buffer held before."""
        count = math.prod(shape)
        if len(self.buffers[index]) < count:
            self.buffers[index] = self._empty(count)
        return self.buffers[index][:count].reshape(shape)

    def _sum(self, x: Images, y: Images) -> Any:
        """Sums (n,) of the local SSIM of tiles (n, H, W, C); None if they are to be computed in float64."""
        module = self.module
        count, height, width, channels = x.shape
        maps = self._buffer(0, 4, count, height, width * channels)
        centred, centre_x = self._centred(x, 0)
        other, centre_y = self._centred(y, 1)
        module.add(centred, other, out=maps[0])
        module.subtract(centred, other, out=maps[1])
        module.multiply(maps[:2], maps[:2], out=maps[2:])
        means, variances = self._filter(maps, channels).reshape(2, 2, count, width - self.margin, channels, -1)
        squares = self._buffer(1, *means.shape)
        module.multiply(means, means, out=squares)
        variances -= squares
        if not self.is_safe and self._risk(squares, variances) > _MAX_RISK:
            return None
        structure, luminance = squares
        u_squared, v_squared = variances
        self._split(u_squared, v_squared, 2 * self.c2, structure)
        if not self.without_means:
            means += module.stack([centre_x + centre_y, centre_x - centre_y])[:, :, None, :, None]
            means *= means
            u, v = means
            self._split(u, v, 2 * _C1, luminance)
            structure *= luminance
            u_squared *= u
        structure /= u_squared
        return structure.sum((1, 2, 3), dtype=module.float64)

    def _centred(self, values: Images, index: int) -> Any:
        """Values (n, H, W·C) from which a whole number near their mean is taken, and that number (n, C).

        Their memory is a part of buffer 1.
        """
        count, height, width, channels = values.shape
        centre = self.module.asarray(values[:, ::8, ::8], dtype=self.dtype).mean((1, 2)).round()
        result = self._buffer(1, 2, count, height, width * channels)[index]
        line = self.module.tile(centre, (1, width))[:, None]
        self.module.subtract(values.reshape(result.shape), line, out=result)
        return result, centre

    def _risk(self, squares: Any, variances: Any) -> float:
        """The mean, over every eighth column, of squared means over the variances that their rounding may change.

        A wrong V[v] counts everywhere, a wrong V[u] where u is flat and v is not; elsewhere its errors are of any sign.
        """
        (u, v), (var_u, var_v) = squares[:, :, ::8], variances[:, :, ::8]
        ratio = (v + u * ((var_u < _FLAT) & (var_v > _FLAT))) / (var_u + var_v + 2 * self.c2)
        return float(ratio.mean())

    def _split(self, one: Any, other: Any, constant: float, difference: Any) -> None:
        """Write one - other + constant to `difference`, and one + other + constant to `one`."""
        one += constant
        self.module.subtract(one, other, out=difference)
        one += other

    def _filter(self, maps: Any, channels: int) -> Any:
        """Filter maps (4, n, H, W·C) of buffer 0: (4, n, W - margin, C·(H - margin)), in buffer 0.

        Along H the matrix products return columns as rows, so that neither needs values of a channel to be adjacent.
        """
        _, count, height, line = maps.shape
        width, rows, columns = line // channels, height - self.margin, line // channels - self.margin
        turned = self._buffer(1, 4, count, line, rows)
        for start in range(0, rows, _BLOCK):
            band = self.typed_band[: rows - start, : rows - start + self.margin]
            source = maps[:, :, start : start + band.shape[1]]
            self.module.matmul(source.swapaxes(2, 3), band.T, out=turned[..., start : start + len(band)])
        turned = turned.reshape(4, count, width, channels * rows)
        filtered = self._buffer(0, 4, count, columns, channels * rows)
        for start in range(0, columns, _BLOCK):
            band = self.typed_band[: columns - start, : columns - start + self.margin]
            source = turned[:, :, start : start + band.shape[1]]
            self.module.matmul(band, source, out=filtered[:, :, start : start + len(band)])
        return filtered
