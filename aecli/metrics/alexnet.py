"""LPIPS over AlexNet in NumPy, for CPUs: without PyTorch, whose import takes as long as measuring a hundred pairs.

The weights are those that ship with aecli. Layers whose filters are 3×3 and 5×5 are computed by Winograd's algorithm.
One core of an AMD EPYC, AVX2, takes 60 % of the time that `aecli.metrics.lpips` takes there, and less memory.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from aecli.errors import WeightsError
from aecli.metrics.base import check_images
from aecli.metrics.lpips_choice import MIN_SIDE
from aecli.metrics.winograd_matrices import ONE, matrices
from aecli.storage.atomic_files import sha256_of

WEIGHTS = Path(__file__).parent / "weights" / "alexnet_features.safetensors"
HEADS = Path(__file__).parent / "weights" / "lpips_alex_heads.safetensors"

# ImageNet's mean and standard deviation, as LPIPS has them, on the scale of 8 bits.
_SHIFT = 127.5 * (1 + np.array([-0.030, -0.088, -0.188]))
_SCALE = 1 / (127.5 * np.array([0.458, 0.448, 0.450]))
_EPSILON = 1e-10

# float32 elements of gathered or transformed inputs at a time: what stays in a core's cache, but for the layers of
# 3×3 filters, whose transformed weights of 13 to 19 MB are read once for each block.
_BLOCK = 2**18
_DEEP_BLOCK = 2**22

Images = NDArray[np.uint8]
Maps = NDArray[np.float32]  # (N, h, w, C)


class AlexNetLPIPS:
    """LPIPS v0.1 over AlexNet; raises WeightsError if the files are damaged.

    Zhang et al., CVPR 2018; the arithmetic is that of the lpips package 0.1.4, in float32.
    """

    def __init__(self) -> None:
        """Read the weights, and transform them."""
        tensors = _read(WEIGHTS)
        self.weights_sha256 = sha256_of(WEIGHTS)
        weights, biases = ([tensors[f"features.{index}.{kind}"] for index in (0, 3, 6, 8, 10)]
                           for kind in ("weight", "bias"))  # fmt: skip
        heads = _read(HEADS)
        self.heads = [heads[f"lin{index}"] for index in range(len(weights))]
        self.first = _Strided(weights[0] * _SCALE.astype(np.float32)[:, None, None], biases[0])
        self.others = [
            _Winograd(weight, bias, tile, block)
            for weight, bias, tile, block in zip(weights[1:], biases[1:], (4, 5, 5, 5),
                                                 (_BLOCK, *[_DEEP_BLOCK] * 3), strict=True)
        ]  # fmt: skip

    def activations(self, images: Images) -> Iterator[Maps]:
        """Yield each layer's output after ReLU, float32 (N, h, w, C), of images (N, 3, H, W).

        Raises ValueError for anything but uint8, or a side shorter than 31 pixels.
        """
        check_images(images, MIN_SIDE["alex"])
        values = self.first(np.moveaxis(images, 1, -1))
        yield values
        for index, layer in enumerate(self.others):
            values = layer(_max_pooled(values) if index < 2 else values)
            yield values

    def layers(self, images: Images) -> Iterator[list[Maps]]:
        """Yield each layer's output of each image (h·w, C), each position divided by its length over channels."""
        for values in self.activations(images):
            yield [_unit(each) for each in values]

    def references(self, images: Images) -> list[list[Maps]]:
        """Return `layers`, for any number of `distances`."""
        return list(self.layers(images))

    def distances(self, references: Iterable[list[Maps]], images: Images) -> NDArray[np.float64]:
        """LPIPS (N,) of images uint8 (N, 3, H, W) from the `layers` of as many of the same size; 0 for identical ones.

        One layer is in memory at a time.
        """
        total = np.zeros(len(images))
        for head, wanted, values in zip(self.heads, references, self.activations(images), strict=True):
            for index, (truth, each) in enumerate(zip(wanted, values, strict=True)):
                squares = _unit(each)
                squares -= truth
                squares *= squares
                total[index] += float((squares @ head).mean(dtype=np.float64))
        return total


def _unit(values: Maps) -> Maps:
    """A map (h, w, C) as (h·w, C), each position divided by its length."""
    flat = values.reshape(-1, values.shape[-1])
    lengths = np.sqrt(np.einsum("pc,pc->p", flat, flat)) + np.float32(_EPSILON)
    unit: Maps = flat * (1 / lengths)[:, None]
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
        shift = np.tile(_SHIFT.astype(np.float32), width)
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
    """A convolution of stride 1 and "same" padding, and ReLU, by tiles of m×m outputs; see `winograd_matrices`."""

    def __init__(self, weight: Maps, bias: NDArray[np.float32], tile: int, block: int) -> None:
        side = weight.shape[-1]
        inputs, filters, outputs = matrices(tile, side)
        self.tile, self.side, self.points, self.block = tile, side, len(inputs), block
        transformed = np.kron(filters, filters) @ weight.transpose(2, 3, 1, 0).reshape(side**2, -1)
        self.weight = transformed.reshape(-1, *weight.shape[1::-1]).astype(np.float32)  # (n², C, K)
        self.input_transform = np.kron(inputs, inputs).astype(np.float32)
        self.output_transform = np.kron(outputs, outputs).astype(np.float32)
        self.bias = bias

    def __call__(self, values: Maps) -> Maps:
        """(N, h, w, C) -> (N, h, w, K)."""
        count, height, width, channels = values.shape
        tile, points, before, features = self.tile, self.points, self.side // 2, len(self.bias)
        rows, columns = -(-height // tile), -(-width // tile)
        margin = self.side - 1
        padded = np.zeros((count, rows * tile + margin, columns * tile + margin, channels), dtype=np.float32)
        padded[:, before : before + height, before : before + width] = values
        output = np.empty((count, rows * tile, columns * tile, features), dtype=np.float32)
        step = max(1, self.block // (count * columns * points**2 * max(channels, features)))
        for top in range(0, rows, step):
            block = padded[:, top * tile : (top + step) * tile + margin]
            tiles = (block.shape[1] - margin) // tile
            gathered = np.empty((points, points, count, tiles, columns, channels), dtype=np.float32)
            for row in range(points):
                for column in range(points):
                    gathered[row, column] = block[:, row::tile, column::tile][:, :tiles, :columns]
            positions = count * tiles * columns
            transformed = self.input_transform @ gathered.reshape(points**2, -1)
            products = np.matmul(transformed.reshape(-1, positions, channels), self.weight)
            products[ONE * points + ONE] += self.bias
            results = self.output_transform @ products.reshape(points**2, -1)
            np.maximum(results, 0, out=results)
            scattered = results.reshape(tile, tile, count, tiles, columns, features)
            target = output[:, top * tile : (top + step) * tile]
            for row in range(tile):
                for column in range(tile):
                    target[:, row::tile, column::tile] = scattered[row, column]
        return output[:, :height, :width]


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
