"""Distances of predictions to their ground truth as two sets of images: FID and KID, and their formulas over AlexNet.

Those of reconstructions are what papers on tokenizers call rFID and rKID.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from aecli.configs import EvalConfig
from aecli.metrics.base import Described
from aecli.metrics.distribution_distances import Vectors, frechet_distance, kernel_distance
from aecli.metrics.statistics import Interval
from aecli.progress import Listener

if TYPE_CHECKING:  # PyTorch is imported once a network is loaded
    from torch import Tensor

    from aecli.metrics.feature_networks import SetFeatures

MIN_IMAGES = 3  # for the interval of a kernel distance

_FRECHET = (
    "|μ₁-μ₂|² + tr(Σ₁ + Σ₂ - 2(Σ₁Σ₂)^½), sample covariances; biased by the number of images, so only sets of as many "
    "compare"
)
_KERNEL = (
    "the unbiased squared MMD under (x·y/D + 1)³ over all images, not over subsets; an image with its own prediction "
    "counts as any two do, which takes close predictions below 0; 95 % interval of the jackknife over pairs"
)


@dataclass(frozen=True)
class SetDistance:
    """A distance of two sets of images, with its 95 % interval where it has one."""

    value: float
    ci95: Interval | None = None


@dataclass(frozen=True)
class SetMetric(Described):
    """A metric of all images together: the distance of two sets of vectors (N, D), the features of a network.

    `features` names the network. Its `min_side` is what is left of an image after cutting off a border: a pixel.
    """

    name: str
    features: str
    formula: str
    measure: Callable[[Vectors, Vectors], SetDistance]
    digits: int
    higher_is_better: bool = False
    min_side: int = 1

    def definition(self, network: "SetFeatures", images: int, crop_border: int) -> str:
        """Define its value for so many `images` of each set, over the network that was loaded."""
        cut = f" Before that, {crop_border} pixels are cut off on each side." if crop_border else ""
        return (
            f"{self.name.upper()} of {images:,} predictions and their {images:,} ground truths: {self.formula}. Over "
            f"{network.definition} Features in float32, distances in float64; weights' SHA-256 "
            f"{network.weights_sha256[:16]}…{cut}"
        )


def _measure_frechet(real: Vectors, fake: Vectors) -> SetDistance:
    return SetDistance(frechet_distance(real, fake))


def _measure_kernel(real: Vectors, fake: Vectors) -> SetDistance:
    return SetDistance(*kernel_distance(real, fake, are_pairs=True))


SET_METRICS = {
    "fid": SetMetric("fid", "inception", _FRECHET, _measure_frechet, digits=2),
    "kid": SetMetric("kid", "inception", _KERNEL, _measure_kernel, digits=5),
    "fd-alex": SetMetric("fd-alex", "alex", _FRECHET, _measure_frechet, digits=2),
    "kd-alex": SetMetric("kd-alex", "alex", _KERNEL, _measure_kernel, digits=5),
}


def build_set_metrics(config: EvalConfig) -> tuple[SetMetric, ...]:
    """Return those of the metrics that `config` asks for, each once, that are of sets."""
    names = dict.fromkeys(name for name in config.metrics if name in SET_METRICS)
    return tuple(replace(SET_METRICS[name], min_side=1 + 2 * config.crop_border) for name in names)


def load_networks(
    metrics: tuple[SetMetric, ...], config: EvalConfig, device: str, listen: Listener
) -> dict[str, "SetFeatures"]:
    """Load the networks of `metrics`, by name; they see images without the border that `config` cuts off.

    Raises:
        WeightsError: a package or weights are missing, or a file is damaged.
    """
    networks: dict[str, SetFeatures] = {}
    if not metrics:
        return networks
    import torch

    from aecli.metrics.feature_networks import load_features

    for metric in metrics:
        if metric.features not in networks:
            network = load_features(metric.features, torch.device(device), listen, f"--metrics {metric.name}")
            networks[metric.features] = _cropped(network, config.crop_border) if config.crop_border else network
    return networks


def _cropped(network: "SetFeatures", border: int) -> "SetFeatures":
    def compute(images: "Tensor") -> "Tensor":
        return network.compute(images[..., border:-border, border:-border])

    return replace(network, compute=compute)
