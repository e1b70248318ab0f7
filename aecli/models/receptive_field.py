"""How far a pixel of a reconstruction looks, which says what a picture that is computed in tiles needs around each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from aecli.models.base import Autoencoder, evaluating

_SIDE = 4  # of the image that is tried, in multiples of the model's size
_WHOLE = (  # how the names of operations begin that mix all positions of their input
    "native_group_norm", "_scaled_dot_product", "_native_multi_head_attention", "_adaptive_avg_pool2d",
    "adaptive_max_pool2d", "_fft",
)  # fmt: skip
_BATCH_NORMS = ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")
_SOFTMAXES = ("_softmax", "_safe_softmax")
_REDUCTIONS = (*_SOFTMAXES, "mean", "var", "std", "var_mean", "amax", "amin", "sum")  # over the next argument
_INTERPOLATIONS = {"upsample_bilinear2d": 1, "upsample_bicubic2d": 2}


@dataclass(frozen=True)
class ReceptiveField:
    """`margin`: pixels on each side that a reconstructed one depends on, a multiple of the model's `size_multiple`.

    With `is_whole` something also looks at the whole picture, such as GroupNorm or attention.
    """

    margin: int
    is_whole: bool


def grows_with_images(model: Autoencoder) -> bool:
    """Whether its latent grows with the image, so that it can have images of other sizes."""
    side = 8 * model.size_multiple
    return tuple(model.latent_shape(side)) != tuple(model.latent_shape(2 * side))


def receptive_field(model: Autoencoder) -> ReceptiveField:
    """Find it from the operations of a small image's reconstruction.

    The margin is at least what the kernels reach: the sum over all of them, also of those that lie side by side.
    """
    multiple = model.size_multiple
    side = _SIDE * multiple
    parameter = next(chain(model.parameters(), model.buffers()), None)
    images = torch.zeros(1, 3, side, side, device=None if parameter is None else parameter.device)
    reach = _Reach(side, multiple)
    with evaluating(model), torch.no_grad(), reach:
        model(images)
    # A coarse position begins with its finest pixel: to and fro through the resolutions adds one multiple at most.
    return ReceptiveField(-(-(reach.pixels + multiple - 1) // multiple) * multiple, reach.is_whole)


class _Reach(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up how many pixels the operations on an image of that side reach."""

    def __init__(self, side: int, multiple: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.side = side
        self.scales = [scale for scale in range(1, multiple + 1) if multiple % scale == 0]
        self.pixels, self.is_whole = 0, False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if args and isinstance(args[0], Tensor) and args[0].ndim == 4:
            self.pixels += _reached(name, args) * self._scale(args[0].shape[-2])
        self.is_whole = self.is_whole or _mixes_all(name, args)
        return func(*args, **(kwargs or {}))

    def _scale(self, height: int) -> int:
        """Return the pixels a position of features, which may have been padded, stands for."""
        return next((scale for scale in self.scales if scale * height >= self.side), self.side)


def _reached(name: str, args: Sequence[Any]) -> int:
    """Return how many positions of its input an operation looks beyond those that it is of."""
    if name == "convolution":
        _, weight, _, strides, paddings, dilations, is_transposed = args[:7]
        geometry = zip(weight.shape[2:], strides, paddings, dilations, strict=True)
        return max(_kernel_reach(*each, is_transposed) for each in geometry)
    if name in ("avg_pool2d", "max_pool2d_with_indices"):
        return int(max(args[1])) - 1
    return _INTERPOLATIONS.get(name, 0)


def _kernel_reach(side: int, stride: int, padding: int, dilation: int, is_transposed: bool) -> int:
    after = (side - 1) * dilation - padding
    if is_transposed:
        return max(stride - 1 + padding, after) // stride
    return max(padding, after - (stride - 1), 0)


def _mixes_all(name: str, args: Sequence[Any]) -> bool:
    if name in _BATCH_NORMS:
        return bool(args[5])  # in training: instance normalisation is that too
    if name == "native_layer_norm":
        return len(args[1]) > 1
    if name in _REDUCTIONS and len(args) > 1:
        if args[0].ndim != 4:
            return name in _SOFTMAXES  # over tokens: attention
        dims = args[1] if isinstance(args[1], Sequence) else [args[1]]
        return any(dim % 4 in (2, 3) for dim in dims if isinstance(dim, int))
    return name.startswith(_WHOLE)
