"""How near two images are: functions of uint8 (N, 3, H, W) pairs that give one number a pair.

A new metric is one pure function and one line in `BUILDERS`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aecli.configs import EvalConfig
from aecli.metrics import lpips, psnr, ssim
from aecli.progress import Listener

# Ground truths uint8 (N, 3, H, W) -> a function of as many predictions that gives (N,) float64. What can be worked out
# from the ground truth alone is worked out once, however many predictions follow.
Measure = Callable[[Tensor], Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class Loaded:
    """A metric ready to measure; `versions` are those of the weights it uses."""

    measure: Measure
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric:
    """What a table says of a metric, and how it is made ready.

    `min_side` is the shortest side, in pixels, that it can measure. `load` may raise WeightsError. `pool`, where the
    metric has one, gives the one number of all images' numbers (N,) taken together; such a metric is infinite where
    images are identical.
    """

    name: str
    unit: str
    higher_is_better: bool
    min_side: int
    definition: str
    load: Callable[[torch.device, Listener], Loaded]
    pool: Callable[[NDArray[np.float64]], float | None] | None = None
    digits: int = 4  # after the point, where it is told

    @property
    def title(self) -> str:
        """Its name as tables show it, with an arrow to the better side."""
        return f"{self.name.upper()} {'↑' if self.higher_is_better else '↓'}"

    def format(self, value: float) -> str:
        """One number of its, as tables show it."""
        return "∞" if math.isinf(value) else f"{value:.{self.digits}f}"

    def format_difference(self, value: float | None) -> str:
        """The difference of two, with its sign."""
        return "–" if value is None else f"{value:+.{self.digits}f}"

    def format_interval(self, interval: tuple[float, float] | None) -> str:
        """An interval, or nothing where there is none."""
        return "" if interval is None else f"[{interval[0]:.{self.digits}f}, {interval[1]:.{self.digits}f}]"


def _pairwise(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[torch.device, Listener], Loaded]:
    """Make a metric of a pure function of two batches."""
    return lambda device, listen: Loaded(lambda truths: partial(function, truths))


def _psnr(config: EvalConfig) -> Metric:
    definition = (
        "PSNR of an image is 10 log10(255^2 / MSE) dB, its MSE taken over pixels and RGB channels of 8 bits; "
        "mean, ci95 and comparisons leave out identical images (infinite PSNR), which are counted; "
        "median is over all images; pooled is the PSNR of the mean MSE of all images, each image weighing the same."
    )
    return Metric("psnr", "dB", True, psnr.MIN_SIDE, definition, _pairwise(psnr.psnr), psnr.pooled_psnr, digits=2)


def _ssim(config: EvalConfig) -> Metric:
    details = {
        "gaussian": "Gaussian window of sigma 1.5 cut at 3.5 sigma (11x11), population covariance, 5-pixel",
        "uniform": "uniform 7x7 window, sample covariance, 3-pixel",
    }
    definition = (
        f"SSIM of an image after Wang et al. 2004: {details[config.ssim_window]} border left out, data range 255, "
        "K1 0.01, K2 0.03, mean over pixels and RGB channels."
    )
    function = partial(ssim.ssim, window=config.ssim_window)
    return Metric("ssim", "", True, ssim.MIN_SIDE[config.ssim_window], definition, _pairwise(function))


def _lpips(config: EvalConfig) -> Metric:
    net = config.lpips_net

    def load(device: torch.device, listen: Listener) -> Loaded:
        network = lpips.LPIPS.from_net(net, config.lpips_weights, listen).to(device)

        def measure(truths: Tensor) -> Callable[[Tensor], Tensor]:
            features = network.features(truths)
            return lambda predictions: network.distance(features, network.features(predictions))

        return Loaded(measure, {f"lpips_{net}_sha256": network.weights_sha256})

    definition = f"LPIPS v0.1 (Zhang et al. 2018) over {net}, inputs scaled to [-1, 1], no resizing."
    return Metric("lpips", "", False, lpips.MIN_SIDE[net], definition, load)


BUILDERS: dict[str, Callable[[EvalConfig], Metric]] = {"psnr": _psnr, "ssim": _ssim, "lpips": _lpips}
