"""LPIPS over AlexNet in NumPy, for CPUs: without PyTorch, whose import takes as long as measuring a hundred pairs.

The weights are those that ship with aecli. Layers whose filters are 3×3 and 5×5 are computed by Winograd's algorithm.
One core of an AMD EPYC, AVX2, takes 0.75 to 0.85 of the time that `aecli.metrics.lpips` takes there, from 32×32 to
1,024×1,024; `eval` of 12 megapixels, two at a time, takes 1.75 GB of memory instead of 2.75.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from aecli.errors import WeightsError
from aecli.metrics.base import check_images
from aecli.metrics.lpips_choice import EPSILON, MIN_SIDE, SCALE, SHIFT
from aecli.metrics.winograd_matrices import ONE, matrices
from aecli.storage.atomic_files import sha256_of

WEIGHTS = Path(__file__).parent / "weights" / "alexnet_features.safetensors"
HEADS = Path(__file__).parent / "weights" / "lpips_alex_heads.safetensors"

# float32 elements at a time: what stays in a core's cache; more of Winograd's transformed tiles, whose weights, up to
# 19 MB a layer, are read once for each block.
_BLOCK = 2**18
_WINOGRAD_BLOCK = 2**21
# Sides of tiles to choose from, by the filter's side; larger ones would round more.
_TILES = {3: (1, 3, 4, 5), 5: (3, 4)}

Images = NDArray[np.uint8]
Maps = NDArray[np.float32]  # (N, h, w, C)


class AlexNetLPIPS:
    """LPIPS v0.1 over AlexNet; raises WeightsError if the files are damaged.

    Zhang et al., CVPR 2018; the arithmetic is that of the lpips package 0.1.4, in float32.
    """

    def __init__(self) -> None:
        """Read the weights."""
        tensors = _read(WEIGHTS)
        self.weights_sha256 = sha256_of(WEIGHTS)
        weights, biases = ([tensors[f"features.{index}.{kind}"] for index in (0, 3, 6, 8, 10)]
                           for kind in ("weight", "bias"))  # fmt: skip
        heads = _read(HEADS)
        self.heads = [heads[f"lin{index}"] for index in range(len(weights))]
        self.first = _Strided(weights[0] / (127.5 * np.array(SCALE, dtype=np.float32)[:, None, None]), biases[0])
        self.others = [
            _Winograd(weight, bias, _TILES[weight.shape[-1]])
            for weight, bias in zip(weights[1:], biases[1:], strict=True)
        ]

    def activations(self, images: Images) -> Iterator[Maps]:
        """Yield each layer's output after ReLU, float32 (N, h, w, C), of images (N, 3, H, W).

        Raises ValueError for anything but uint8, or a side shorter than 31 pixels.
        """
        check_images(images, MIN_SIDE["alex"])
        values = self.first(np.moveaxis(images, 1, -1))
        yield values
        for index, layer in enumerate(self.others):
            if index < 2:
                values = _max_pooled(values)
            values = layer(values)
            yield values

    def distances(self, references: Iterable[Maps], images: Images) -> NDArray[np.float64]:
        """LPIPS (N,) of images uint8 (N, 3, H, W) from the `activations` of as many of the same size; 0 if identical.

        `map` keeps no layer once it is done with, as the variables of a loop would while the next is computed.
        """
        layers = map(_distances, self.heads, references, self.activations(images))
        totals: NDArray[np.float64] = sum(layers, start=np.zeros(len(images)))
        return totals


def _distances(head: NDArray[np.float32], references: Maps, values: Maps) -> NDArray[np.float64]:
    """The means (N,) over positions of squared differences of unit vectors, weighted by channel."""
    count, rows, columns, channels = values.shape
    images, height = max(1, _BLOCK // (rows * columns * channels)), max(1, _BLOCK // (columns * channels))
    totals = np.zeros(count)
    for first, top in product(range(0, count, images), range(0, rows, height)):
        some = slice(first, first + images)
        squares = _unit(values[some, top : top + height])
        squares -= _unit(references[some, top : top + height])
        squares *= squares
        totals[some] += (squares @ head).sum(axis=1, dtype=np.float64)
    totals /= rows * columns
    return totals


def _unit(values: Maps) -> Maps:
    """Positions (N, rows, w, C) as (N, rows·w, C), each divided by its length."""
    flat = values.reshape(len(values), -1, values.shape[-1])
    lengths = np.sqrt(np.einsum("npc,npc->np", flat, flat)) + np.float32(EPSILON)
    unit: Maps = flat * (1 / lengths)[..., None]
    return unit


class _Strided:
    """AlexNet's first convolution, 11×11 of stride 4 with 2 pixels of padding, and ReLU: gathered, then one product."""

    def __init__(self, weight: Maps, bias: NDArray[np.float32]) -> None:
        self.weight = weight.transpose(2, 3, 1, 0).reshape(-1, len(bias)).copy()  # (11·11·3, 64)
        self.bias = bias

    def __call__(self, images: NDArray[np.uint8]) -> Maps:
        """(N, H, W, 3) from 0 to 255, its mean not removed -> (N, h, w, 64)."""
        count, height, width, _ = images.shape
        padded = np.zeros((count, height + 4, (width + 4) * 3), dtype=np.float32)
        # Over whole rows, not over 3 channels; the scale is in the weights.
        shift = np.tile(127.5 * (1 + np.array(SHIFT, dtype=np.float32)), width)
        np.subtract(images.reshape(count, height, width * 3), shift, out=padded[:, 2:-2, 6:-6])
        windows = np.lib.stride_tricks.sliding_window_view(padded, (11, 33), axis=(1, 2))[:, ::4, ::12]
        count, rows, columns = windows.shape[:3]
        output = np.empty((count, rows, columns, len(self.bias)), dtype=np.float32)
        step = max(1, _BLOCK // (columns * len(self.weight)))
        for image, target in zip(windows, output, strict=True):
            for top in range(0, rows, step):
                gathered = image[top : top + step].reshape(-1, len(self.weight))
                block = target[top : top + step].reshape(-1, len(self.bias))
                np.matmul(gathered, self.weight, out=block)
                block += self.bias
                np.maximum(block, 0, out=block)
        return output


class _Winograd:
    """A convolution of stride 1 and "same" padding, and ReLU, by tiles of outputs; see `winograd_matrices`.

    Of the sides in `tiles`, a map gets the one that takes the fewest products: the least waste at its edges.
    """

    def __init__(self, weight: Maps, bias: NDArray[np.float32], tiles: Sequence[int]) -> None:
        self.weight, self.bias, self.tiles = weight.transpose(2, 3, 1, 0), bias, tiles  # (r, r, C, K)
        self._transforms: dict[int, _Transforms] = {}
        self._lock = Lock()

    def _transforms_for(self, height: int, width: int) -> "_Transforms":
        """Those of the best tile; made when first needed, by one of the threads that ask for them."""
        margin = len(self.weight) - 1
        tile = min(self.tiles, key=lambda side: -(-height // side) * -(-width // side) * (side + margin) ** 2)
        with self._lock:
            if tile not in self._transforms:
                self._transforms[tile] = _Transforms.of(self.weight, tile)
            return self._transforms[tile]

    def __call__(self, values: Maps) -> Maps:
        """(N, h, w, C) -> (N, h, w, K)."""
        count, height, width, channels = values.shape
        transforms, features, margin = self._transforms_for(height, width), len(self.bias), len(self.weight) - 1
        tile, points, before = transforms.tile, transforms.tile + margin, margin // 2
        rows, columns = -(-height // tile), -(-width // tile)
        padded = np.zeros((count, rows * tile + margin, columns * tile + margin, channels), dtype=np.float32)
        padded[:, before : before + height, before : before + width] = values
        output = np.empty((count, rows * tile, columns * tile, features), dtype=np.float32)
        step = max(1, _WINOGRAD_BLOCK // (count * columns * points**2 * max(channels, features)))
        for top in range(0, rows, step):
            block = padded[:, top * tile : (top + step) * tile + margin]
            tiles = (block.shape[1] - margin) // tile
            gathered = np.empty((points, points, count, tiles, columns, channels), dtype=np.float32)
            for row in range(points):
                for column in range(points):
                    gathered[row, column] = block[:, row::tile, column::tile][:, :tiles, :columns]
            positions = count * tiles * columns
            transformed = transforms.inputs @ gathered.reshape(points**2, -1)
            products = np.matmul(transformed.reshape(-1, positions, channels), transforms.weight)
            products[ONE * points + ONE] += self.bias
            results = transforms.outputs @ products.reshape(points**2, -1)
            np.maximum(results, 0, out=results)
            scattered = results.reshape(tile, tile, count, tiles, columns, features)
            target = output[:, top * tile : (top + step) * tile]
            for row in range(tile):
                for column in range(tile):
                    target[:, row::tile, column::tile] = scattered[row, column]
        return output[:, :height, :width]


@dataclass(frozen=True)
class _Transforms:
    """For tiles of m×m outputs, n = m + r - 1: of inputs (n², n²), of outputs (m², n²), and the weights (n², C, K)."""

    tile: int
    inputs: NDArray[np.float32]
    outputs: NDArray[np.float32]
    weight: NDArray[np.float32]

    @classmethod
    def of(cls, weight: NDArray[np.float32], tile: int) -> "_Transforms":
        side, _, channels, features = weight.shape
        inputs, filters, outputs = matrices(tile, side)
        transformed = np.kron(filters, filters) @ weight.reshape(side**2, -1)
        return cls(
            tile,
            inputs=np.kron(inputs, inputs).astype(np.float32),
            outputs=np.kron(outputs, outputs).astype(np.float32),
            weight=transformed.reshape(-1, channels, features).astype(np.float32),
        )


def _max_pooled(values: Maps) -> Maps:
    """Maxima of 3×3 positions, of every second row and column."""
    for axis in (1, 2):
        values = np.moveaxis(values, axis, 0)
        last = (len(values) - 3) // 2 * 2 + 1
        pooled = np.maximum(values[0:last:2], values[1 : last + 1 : 2])
        values = np.moveaxis(np.maximum(pooled, values[2 : last + 2 : 2], out=pooled), 0, axis)
    return values


def _read(path: Path) -> dict[str, NDArray[np.float32]]:
    try:
        return load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} is damaged ({error})\nhint: install aecli again") from error
