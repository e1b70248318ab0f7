"""DISTS: the structure and texture of two images compared, in the activations of a trained network.

Ding, Ma, Wang and Simoncelli, "Image quality assessment: unifying structure and texture similarity", IEEE Transactions
on Pattern Analysis and Machine Intelligence 44 (2022); the arithmetic is that of the DISTS_pytorch package 0.1.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aecli.configs import EvalConfig
from aecli.errors import WeightsError
from aecli.metrics.base import EIGHT_BITS, Images, LoadedMetric, Metric, Score, check_images, check_pairs
from aecli.metrics.lpips import LPIPS
from aecli.metrics.lpips_choice import MIN_SIDE as LPIPS_SIDE
from aecli.metrics.network_weights import DISTS_HEADS, UnreadableWeights, read_safetensors
from aecli.progress import Listener, ignore

NET = "vgg"
MIN_SIDE = LPIPS_SIDE[NET]
CHANNELS = (3, 64, 128, 256, 512, 512)  # of the image itself, and of the tapped layers
_C = 1e-6  # keeps both quotients finite in flat images


def build(config: EvalConfig) -> Metric:
    """Describe DISTS."""
    given = config.lpips_weights if config.lpips_net == NET else None

    def load(device: str, listen: Listener) -> LoadedMetric:
        network = DISTS(given, listen).to(device)

        def statistics(images: Images) -> Statistics:
            return network.statistics(torch.as_tensor(images, device=device))

        def against(references: Images) -> Score:
            of_references = statistics(references)
            return lambda predictions: network.distance(of_references, statistics(predictions))

        return LoadedMetric(against, {f"dists_{NET}_sha256": network.weights_sha256})

    definition = (
        "DISTS (Ding et al. 2020) over VGG16 with L2 pooling, inputs scaled to [0, 1], no resizing; 0 for equal images."
    )
    return Metric("dists", "", False, MIN_SIDE, definition, load, has_network=True, takes_arrays=False)


@dataclass(frozen=True)
class Statistics:
    """Of each layer's maps: means and variances (N, C), and the maps (N, C, h, w) less their means; float32."""

    means: tuple[Tensor, ...]
    variances: tuple[Tensor, ...]
    centred: tuple[Tensor, ...]


class L2Pool(nn.Module):
    """Halves maps by the root of the weighted mean of squares, with a 3×3 Hann window: it does not alias."""

    def __init__(self, channels: int) -> None:
        """For maps of so many channels."""
        super().__init__()
        taps = torch.tensor([0.25, 0.5, 0.25])
        self.window = nn.Buffer(torch.outer(taps, taps).expand(channels, 1, 3, 3).contiguous())

    def forward(self, values: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, ⌈H/2⌉, ⌈W/2⌉)."""
        means = F.conv2d(values.square(), self.window, stride=2, padding=1, groups=values.shape[1])
        return (means + 1e-12).sqrt()


class DISTS(nn.Module):
    """DISTS over VGG16."""

    def __init__(self, weights: Path | None = None, listen: Listener = ignore) -> None:
        """Find VGG16's weights as LPIPS does, or take those of a file; raises WeightsError."""
        super().__init__()
        self.network = LPIPS.from_net(NET, weights, listen)  # its standardisation is the same
        self.weights_sha256 = self.network.weights_sha256
        channels = iter(CHANNELS[1:])
        for index, layer in enumerate(self.network.backbone):
            if isinstance(layer, nn.MaxPool2d):
                self.network.backbone[index] = L2Pool(next(channels))
        alpha, beta = _heads()
        total = alpha.sum() + beta.sum()
        self.alpha, self.beta = nn.Buffer(alpha / total), nn.Buffer(beta / total)
        self.requires_grad_(False).eval()

    @torch.inference_mode()
    def statistics(self, images: Tensor) -> Statistics:
        """What images uint8 (N, 3, H, W) are compared by; raises ValueError as LPIPS' `features` does."""
        check_images(images, MIN_SIDE)
        maps = (images.float() / EIGHT_BITS, *self.network.activations(images))
        means = tuple(each.mean(dim=(2, 3)) for each in maps)
        centred = tuple(each - mean[:, :, None, None] for each, mean in zip(maps, means, strict=True))
        return Statistics(means, tuple(each.square().mean(dim=(2, 3)) for each in centred), centred)

    @torch.inference_mode()
    def distance(self, a: Statistics, b: Statistics) -> Tensor:
        """DISTS of each pair from its `statistics`: (N,) float64 on the CPU, 0 for identical images."""
        mean_a, mean_b, variance_a, variance_b = (
            torch.cat(each, dim=1).cpu().double() for each in (a.means, b.means, a.variances, b.variances)
        )
        products = [(one * other).mean(dim=(2, 3)) for one, other in zip(a.centred, b.centred, strict=True)]
        covariance = torch.cat(products, dim=1).cpu().double()
        texture = (2 * mean_a * mean_b + _C) / (mean_a.square() + mean_b.square() + _C)
        structure = (2 * covariance + _C) / (variance_a + variance_b + _C)
        return (1 - texture) @ self.alpha.cpu().double() + (1 - structure) @ self.beta.cpu().double()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """DISTS of each pair: uint8 (N, 3, H, W) twice -> (N,) float64 on the CPU; raises like `statistics`."""
        check_pairs(a, b, MIN_SIDE)
        return self.distance(self.statistics(a), self.statistics(b))


def _heads() -> tuple[Tensor, Tensor]:
    """The weights of texture and structure, (1475,) each: those that ship with aecli."""
    try:
        tensors = read_safetensors(DISTS_HEADS)
        return tensors["alpha"], tensors["beta"]
    except (UnreadableWeights, KeyError) as error:
        raise WeightsError(f"{DISTS_HEADS} can't be read: {error}\nhint: reinstall aecli") from error
