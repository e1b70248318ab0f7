"""LPIPS as a metric of `aecli eval`: by NumPy where the default network runs on a CPU, else by PyTorch.

Neither PyTorch nor the network is imported before the metric is loaded.
"""

import sys

import numpy as np

from aecli.configs import EvalConfig
from aecli.metrics.base import Images, LoadedMetric, Metric, Score, Values
from aecli.progress import Listener

# As the lpips package has them: ImageNet's mean and standard deviation, for images in [-1, 1]; and what is added to a
# length that is divided by.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
EPSILON = 1e-10
# The shortest side at which every tapped layer has an output.
MIN_SIDE = {"alex": 31, "vgg": 16, "squeeze": 17}

# Features of larger images (0.5 GB of 12 megapixels) are not kept: they are computed anew for each prediction.
_KEPT_PIXELS = 2**21


def build(config: EvalConfig) -> Metric:
    """Describe LPIPS over the network that `config` asks for."""
    net = config.lpips_net
    suits_numpy = net == "alex" and config.lpips_weights is None

    def load(device: str, listen: Listener) -> LoadedMetric:
        if suits_numpy and str(device) == "cpu":
            return _load_on_arrays()
        return _load_on_tensors(config, device, listen)

    definition = f"LPIPS v0.1 (Zhang et al. 2018) over {net}, inputs scaled to [-1, 1], no resizing."
    return Metric("lpips", "", False, MIN_SIDE[net], definition, load, has_network=True, takes_arrays=suits_numpy)


def _keeps_features(references: Images) -> bool:
    return bool(references.shape[-2] * references.shape[-1] <= _KEPT_PIXELS)


def _load_on_arrays() -> LoadedMetric:
    from aecli.metrics.alexnet import AlexNetLPIPS

    network = AlexNetLPIPS()

    def against(references: Images) -> Score:
        truths = np.asarray(references)
        kept = list(network.activations(truths)) if _keeps_features(truths) else None

        def score(predictions: Images) -> Values:
            values = network.distances(kept or network.activations(truths), np.asarray(predictions))
            return values if isinstance(predictions, np.ndarray) else sys.modules["torch"].from_numpy(values)

        return score

    return LoadedMetric(against, {"lpips_alex_sha256": network.weights_sha256})


def _load_on_tensors(config: EvalConfig, device: str, listen: Listener) -> LoadedMetric:
    import torch

    from aecli.metrics.lpips import LPIPS

    net = config.lpips_net
    network = LPIPS.from_net(net, config.lpips_weights, listen).to(device)

    def tensor(images: Images) -> torch.Tensor:
        return torch.as_tensor(images, device=device)

    def against(references: Images) -> Score:
        if not _keeps_features(references):
            return lambda predictions: network(tensor(references), tensor(predictions))
        features = network.features(tensor(references))
        return lambda predictions: network.distance(features, network.features(tensor(predictions)))

    return LoadedMetric(against, {f"lpips_{net}_sha256": network.weights_sha256})
