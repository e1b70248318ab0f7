"""LPIPS v0.1: the distance between two images as a trained network sees them.

Zhang, Isola, Efros, Shechtman and Wang, "The unreasonable effectiveness of deep features as a perceptual metric", CVPR
2018; the arithmetic is that of the lpips package 0.1.4.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from aecli.errors import WeightsError
from aecli.metrics.network_weights import Weights, backbone_weights, head_weights
from aecli.metrics.pairs import require_images, require_pairs
from aecli.metrics.winograd import WinogradConv2d, suits_winograd
from aecli.progress import Listener, ignore

# The shortest side from which every layer that LPIPS looks at has an output.
MIN_SIDE = {"alex": 31, "vgg": 16, "squeeze": 17}

# ImageNet's mean and deviation, for images in [-1, 1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-10

Features = tuple[Tensor, ...]


class LPIPS(nn.Module):
    """LPIPS over one of three networks, made by `from_net`.

    `backbone` has the layers of torchvision's `features`, up to the last that is looked at; `heads` are the weights of
    the channels of each layer looked at.
    """

    def __init__(self, net: str, backbone: Weights, heads: dict[str, Tensor]) -> None:
        """Build the network `alex`, `vgg` or `squeeze` around weights; raises WeightsError where they don't fit."""
        super().__init__()
        self.net = net
        self.weights_sha256 = backbone.sha256
        self.tapped, layers = _NETWORKS[net]
        self.backbone = nn.Sequential(*layers())
        self.heads = nn.ParameterList(
            nn.Parameter(heads[f"lin{index}.model.1.weight"].float().flatten()) for index in range(len(self.tapped))
        )
        self.shift = nn.Buffer(127.5 * (1 + torch.tensor(_SHIFT)))
        self.scale = nn.Buffer(1 / (127.5 * torch.tensor(_SCALE)))
        _load(self.backbone, backbone, net)
        self.requires_grad_(False).eval()

    @classmethod
    def from_net(cls, net: str, weights: Path | None = None, listen: Listener = ignore) -> "LPIPS":
        """Build the network `alex`, `vgg` or `squeeze`, its weights from `weights` or wherever they are found.

        Raises:
            WeightsError: they can't be had, or are not those of that network.
        """
        return cls(net, backbone_weights(net, weights, listen), head_weights(net))

    @torch.inference_mode()
    def features(self, images: Tensor) -> Features:
        """What each layer looked at makes of uint8 (N, 3, H, W), scaled to length 1 over its channels.

        Returns:
            Float32 (N, C, h, w) a layer.

        Raises:
            ValueError: the images are not uint8 (N, 3, H, W), or a side is shorter than `MIN_SIDE[net]`.
        """
        require_images(images, MIN_SIDE[self.net])
        maps = []
        for values in self._activations(self._normalised(images)):
            length = torch.linalg.vector_norm(values, dim=1, keepdim=True)
            maps.append(values / length.add_(_EPSILON))
        return tuple(maps)

    @torch.inference_mode()
    def deepest(self, images: Tensor) -> Tensor:
        """What the last layer looked at makes of images (N, 3, H, W) from 0 to 255: float32 (N, C, h, w), unscaled."""
        *_, last = self._activations(self._normalised(images))
        return last

    def _activations(self, values: Tensor) -> Iterator[Tensor]:
        """Yield what each layer looked at makes of normalised images: float32 (N, C, h, w) a layer."""
        # TensorFloat-32 would round the convolutions to 10 bits of mantissa.
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if values.is_cuda else nullcontext()
        with exact:
            instead = self._on_cpu if values.device.type == "cpu" else {}
            for index, layer in enumerate(self.backbone):
                values = instead.get(index, layer)(values)
                if index in self.tapped:
                    yield values

    @cached_property
    def _on_cpu(self) -> dict[int, nn.Module]:
        """What stands in for layers of `backbone` on a processor; several threads may make it at once, all the same."""
        return {index: WinogradConv2d(layer) for index, layer in enumerate(self.backbone) if suits_winograd(layer)}

    def _normalised(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) from 0 to 255 -> float32 as the network was trained on, in the layout channels_last."""
        count, _, height, width = images.shape
        rows = images.permute(0, 2, 3, 1).reshape(count, height, width * 3).to(torch.float32, copy=True)
        # Whole rows at once: three channels at a time would be short work for a vector unit.
        values = rows.sub_(self.shift.repeat(width)).mul_(self.scale.repeat(width))
        return values.view(count, height, width, 3).permute(0, 3, 1, 2)

    @torch.inference_mode()
    def distance(self, a: Features, b: Features) -> Tensor:
        """LPIPS from the features of both images of each pair: (N,) float64 on the CPU, 0 where they are identical."""
        distances = []
        for one, other, head in zip(a, b, self.heads, strict=True):
            squares = (one - other).square_().permute(0, 2, 3, 1).flatten(1, 2)
            distances.append((squares @ head).mean(dim=1))
        return torch.stack(distances).cpu().double().sum(dim=0)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """LPIPS of each pair: uint8 (N, 3, H, W) twice -> (N,) float64 on the CPU; raises like `features`."""
        require_pairs(a, b, MIN_SIDE[self.net])
        return self.distance(self.features(a), self.features(b))


class _Fire(nn.Module):
    """SqueezeNet's module: squeeze to few channels, expand by 1×1 and 3×3 convolutions side by side."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, values: Tensor) -> Tensor:
        squeezed = self.squeeze(values).relu()
        return torch.cat([self.expand1x1(squeezed), self.expand3x3(squeezed)], dim=1).relu()


def _relu() -> nn.Module:
    return nn.ReLU()  # not in place: what a convolution leaves may be a part of something larger


def _alex_layers() -> Sequence[nn.Module]:
    return (
        nn.Conv2d(3, 64, 11, stride=4, padding=2), _relu(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), _relu(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), _relu(),
        nn.Conv2d(384, 256, 3, padding=1), _relu(),
        nn.Conv2d(256, 256, 3, padding=1), _relu(),
    )  # fmt: skip


def _vgg_layers() -> Sequence[nn.Module]:
    layers: list[nn.Module] = []
    channels = 3
    for stage, (width, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        if stage:
            layers.append(nn.MaxPool2d(2, 2))
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), _relu()]
            channels = width
    return layers


def _squeeze_layers() -> Sequence[nn.Module]:
    return (
        nn.Conv2d(3, 64, 3, stride=2), _relu(), nn.MaxPool2d(3, 2, ceil_mode=True),
        _Fire(64, 16, 64), _Fire(128, 16, 64), nn.MaxPool2d(3, 2, ceil_mode=True),
        _Fire(128, 32, 128), _Fire(256, 32, 128), nn.MaxPool2d(3, 2, ceil_mode=True),
        _Fire(256, 48, 192), _Fire(384, 48, 192), _Fire(384, 64, 256), _Fire(512, 64, 256),
    )  # fmt: skip


# The layers whose outputs are compared, and all layers up to the last of them, as torchvision numbers its `features`.
_NETWORKS = {
    "alex": ((1, 4, 7, 9, 11), _alex_layers),
    "vgg": ((3, 8, 15, 22, 29), _vgg_layers),
    "squeeze": ((1, 4, 7, 9, 10, 11, 12), _squeeze_layers),
}


def _load(backbone: nn.Sequential, weights: Weights, net: str) -> None:
    """Fill the network from tensors named `features.N.…`; others (a classifier's) are left."""
    wanted = {f"features.{name}": value for name, value in backbone.state_dict().items()}
    missing = [name for name in wanted if name not in weights.tensors]
    shapes = {name: tuple(weights.tensors[name].shape) for name in wanted if name in weights.tensors}
    misfits = [
        f"{name} is {shape}, not {tuple(wanted[name].shape)}"
        for name, shape in shapes.items()
        if shape != wanted[name].shape
    ]
    problems = [f"{name} is missing" for name in missing] + misfits
    if problems:
        more = f" and {len(problems) - 2} more" if len(problems) > 2 else ""
        raise WeightsError(f"{weights.path} does not fit LPIPS {net}: {', '.join(problems[:2])}{more}")
    backbone.load_state_dict({name: weights.tensors[f"features.{name}"] for name in backbone.state_dict()})
