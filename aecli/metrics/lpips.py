"""LPIPS v0.1: a perceptual distance between two images, from the activations of a trained network.

Zhang, Isola, Efros, Shechtman and Wang, "The unreasonable effectiveness of deep features as a perceptual metric", CVPR
2018; the arithmetic is that of the lpips package 0.1.4.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aecli.errors import WeightsError
from aecli.metrics.base import check_images, check_pairs
from aecli.metrics.lpips_choice import EPSILON, MIN_SIDE, SCALE, SHIFT
from aecli.metrics.network_weights import BACKBONES, Weights, backbone_weights, head_weights
from aecli.metrics.winograd import WinogradConv2d, suits_winograd
from aecli.progress import Listener, ignore

Features = tuple[Tensor, ...]


class LPIPS(nn.Module):
    """LPIPS over one of three networks; see `from_net`.

    `backbone` holds the layers of torchvision's `features` up to the last tapped one; `heads` are the channel weights
    of each tapped layer.
    """

    def __init__(self, net: str, backbone: Weights, heads: dict[str, Tensor]) -> None:
        """Build LPIPS over `alex`, `vgg` or `squeeze` from weights; raises WeightsError if they don't fit."""
        super().__init__()
        self.net = net
        self.weights_sha256 = backbone.sha256
        self.tapped, layers = _NETWORKS[net]
        self.backbone = nn.Sequential(*layers())
        self.heads = nn.ParameterList(
            nn.Parameter(heads[f"lin{index}.model.1.weight"].float().flatten()) for index in range(len(self.tapped))
        )
        self.shift = nn.Buffer(127.5 * (1 + torch.tensor(SHIFT)))
        self.scale = nn.Buffer(1 / (127.5 * torch.tensor(SCALE)))
        _load(self.backbone, backbone, net)
        self.requires_grad_(False).eval()

    @classmethod
    def from_net(cls, net: str, weights: Path | None = None, listen: Listener = ignore) -> "LPIPS":
        """Build LPIPS over `alex`, `vgg` or `squeeze`, with weights of `backbone_weights`; raises WeightsError."""
        return cls(net, backbone_weights(net, weights, listen), head_weights(net))

    @torch.inference_mode()
    def features(self, images: Tensor) -> Features:
        """Return the activations of each tapped layer for images uint8 (N, 3, H, W), normalised over channels.

        They are float32 (N, C, h, w), each position a vector of length 1. Raises ValueError for anything but uint8
        (N, 3, H, W), or a side shorter than `MIN_SIDE[net]`.
        """
        check_images(images, MIN_SIDE[self.net])
        return tuple(map(_unit, self._activations(self._standardized(images))))

    @torch.inference_mode()
    def activations(self, images: Tensor) -> Features:
        """Return the tapped layers' float32 (N, C, h, w), not normalised, for images (N, 3, H, W) from 0 to 255."""
        return tuple(self._activations(self._standardized(images)))

    @torch.inference_mode()
    def last_activations(self, images: Tensor) -> Tensor:
        """Return the last tapped layer's float32 (N, C, h, w) for images (N, 3, H, W) from 0 to 255."""
        *_, last = self._activations(self._standardized(images))
        return last

    def differentiable(self, output: Tensor, target: Tensor) -> Tensor:
        """LPIPS (N,) float32 of float images (N, 3, H, W) in [-1, 1], unrounded, with gradients to `output` alone.

        Computed in float32 even under autocast. Raises ValueError for a side shorter than `MIN_SIDE[net]`.
        """
        if min(output.shape[-2:]) < MIN_SIDE[self.net]:
            raise ValueError(f"images of {output.shape[-1]}x{output.shape[-2]} are too small for LPIPS {self.net}")
        shift, scale = (torch.tensor(each, device=output.device).view(3, 1, 1) for each in (SHIFT, SCALE))
        with torch.autocast(output.device.type, enabled=False):
            with torch.no_grad():
                wanted = tuple(map(_unit, self._activations((target.float() - shift) / scale)))
            made = map(_unit, self._activations((output.float() - shift) / scale))
            return self._weighted(map(lambda one, other: (one - other).square(), made, wanted)).sum(dim=0)

    def _activations(self, values: Tensor) -> Iterator[Tensor]:
        """Yield the output float32 (N, C, h, w) of each tapped layer for standardised images."""
        with exact_convolutions(values):
            is_inference = torch.is_inference_mode_enabled()
            replacements = self._winograd_layers if values.device.type == "cpu" and is_inference else {}
            for index, layer in enumerate(self.backbone):
                values = replacements.get(index, layer)(values)
                if index in self.tapped:
                    yield values

    @cached_property
    def _winograd_layers(self) -> dict[int, nn.Module]:
        """Faster replacements on a CPU, by layer; threads that build them at the same time build the same."""
        return {index: WinogradConv2d(layer) for index, layer in enumerate(self.backbone) if suits_winograd(layer)}

    def _standardized(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) from 0 to 255 -> float32 with ImageNet's mean and std removed, in channels_last."""
        count, _, height, width = images.shape
        rows = images.permute(0, 2, 3, 1).reshape(count, height, width * 3).to(torch.float32, copy=True)
        # Broadcast over whole rows, not over 3 channels: 0.4 ms instead of 2.5 ms for 8 images of 256×256 (AMD EPYC).
        values = rows.sub_(self.shift.repeat(width)).mul_(self.scale.repeat(width))
        return values.view(count, height, width, 3).permute(0, 3, 1, 2)

    @torch.inference_mode()
    def distance(self, a: Features, b: Features) -> Tensor:
        """LPIPS of each pair from its `features`: (N,) float64 on the CPU, 0 for identical images."""
        squares = map(lambda one, other: (one - other).square_(), a, b)
        return self._weighted(squares).cpu().double().sum(dim=0)

    def _weighted(self, squares: Iterator[Tensor]) -> Tensor:
        """The weighted distances (layers, N) of squared differences (N, C, h, w), means over positions.

        `map` keeps no layer once it is done with, as the variable of a loop would while the next is computed.
        """
        return torch.stack(list(map(_weighted_mean, squares, self.heads)))

    @torch.inference_mode()
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """LPIPS of each pair: uint8 (N, 3, H, W) twice -> (N,) float64 on the CPU; raises like `features`.

        One layer of both is in memory at a time.
        """
        check_pairs(a, b, MIN_SIDE[self.net])
        ours, theirs = (map(_unit, self._activations(self._standardized(each))) for each in (a, b))
        squares = map(lambda one, other: one.sub_(other).square_(), ours, theirs)
        return self._weighted(squares).cpu().double().sum(dim=0)


def _unit(activations: Tensor) -> Tensor:
    """Activations (N, C, h, w) divided by their length over channels."""
    unit: Tensor = activations / (torch.linalg.vector_norm(activations, dim=1, keepdim=True) + EPSILON)
    return unit


def _weighted_mean(squares: Tensor, head: Tensor) -> Tensor:
    """The mean over positions (N,) of squares (N, C, h, w), weighted by channel."""
    return (squares.permute(0, 2, 3, 1).flatten(1, 2) @ head).mean(dim=1)


def exact_convolutions(values: Tensor) -> AbstractContextManager[None]:
    """Compute convolutions of `values` in float32: TensorFloat-32 would round them to 10 bits of mantissa."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if values.is_cuda else nullcontext()


class _Fire(nn.Module):
    """SqueezeNet's fire module: a 1×1 convolution to few channels, then 1×1 and 3×3 convolutions side by side."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, values: Tensor) -> Tensor:
        squeezed = self.squeeze(values).relu()
        return torch.cat([self.expand1x1(squeezed), self.expand3x3(squeezed)], dim=1).relu()


# ReLU is not in place: the output of a Winograd layer may be a view of a larger tensor.


class StridedConv2d(nn.Conv2d):
    """A convolution whose gradient, while its weights are frozen, is fast on a CPU for large strides.

    That of AlexNet's first layer takes oneDNN 8.0 ms for 16 images of 64², and this 2.8 (two cores, AVX2): a kernel
    whose rows and columns are dealt out to channels by their place in a stride has a stride of 1.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        if not values.requires_grad or self.weight.requires_grad or values.device.type != "cpu":
            return super().forward(values)
        made: Tensor = _StridedConvolution.apply(values, self)
        return made


class _StridedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, layer: nn.Conv2d) -> Tensor:
        ctx.layer, ctx.size = layer, values.shape[2:]
        return F.conv2d(values, layer.weight, layer.bias, layer.stride, layer.padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), (height, width) = gradients, ctx.size
        stride, padding = ctx.layer.stride[0], ctx.layer.padding[0]
        missing = -ctx.layer.kernel_size[0] % stride
        kernel = F.pixel_unshuffle(F.pad(ctx.layer.weight, (0, missing, 0, missing)), stride)
        padded = F.pixel_shuffle(F.conv_transpose2d(gradient, kernel), stride)
        below, right = height + padding - padded.shape[-2], width + padding - padded.shape[-1]  # negative ones cut
        return F.pad(padded, (-padding, right, -padding, below)), None


def _alex_layers() -> Sequence[nn.Module]:
    return (
        StridedConv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
    )  # fmt: skip


def _vgg_layers() -> Sequence[nn.Module]:
    layers: list[nn.Module] = []
    channels = 3
    for stage, (width, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        if stage:
            layers.append(nn.MaxPool2d(2, 2))
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    return layers


def _squeeze_layers() -> Sequence[nn.Module]:
    return (
        nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
        _Fire(64, 16, 64), _Fire(128, 16, 64), nn.MaxPool2d(3, 2, ceil_mode=True),
        _Fire(128, 32, 128), _Fire(256, 32, 128), nn.MaxPool2d(3, 2, ceil_mode=True),
        _Fire(256, 48, 192), _Fire(384, 48, 192), _Fire(384, 64, 256), _Fire(512, 64, 256),
    )  # fmt: skip


# The tapped layers, whose outputs are compared, and all layers up to the last of them; torchvision's numbering.
_NETWORKS = {
    "alex": ((1, 4, 7, 9, 11), _alex_layers),
    "vgg": ((3, 8, 15, 22, 29), _vgg_layers),
    "squeeze": ((1, 4, 7, 9, 10, 11, 12), _squeeze_layers),
}


def _load(backbone: nn.Sequential, weights: Weights, net: str) -> None:
    """Load tensors named `features.N.…`; others, such as a classifier's, are ignored."""
    expected = backbone.state_dict()
    found = {name: weights.tensors.get(f"features.{name}") for name in expected}
    problems = [f"features.{name} is missing" for name, value in found.items() if value is None]
    problems += [
        f"features.{name} is {tuple(value.shape)}, not {tuple(expected[name].shape)}"
        for name, value in found.items()
        if value is not None and value.shape != expected[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 2} more" if len(problems) > 2 else ""
        raise WeightsError(
            f"{weights.path}: not the weights of LPIPS {net} ({', '.join(problems[:2])}{more})\n"
            f"hint: expected torchvision's names and shapes, as in {BACKBONES[net]}"
        )
    backbone.load_state_dict(found)
