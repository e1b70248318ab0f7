"""Networks whose features, one vector per image, are compared between sets of images."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from aecli.errors import WeightsError, message_of
from aecli.metrics.lpips import LPIPS, exact_convolutions
from aecli.metrics.network_weights import (
    UnreadableWeights,
    checked_sha256,
    load_pickle,
    read_safetensors,
    weight_folders,
)
from aecli.progress import Listener

if TYPE_CHECKING:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

ALEX_SIDE, INCEPTION_SIDE = 224, 299  # of the networks' training images
# Under torch-fidelity's names, as a .pth or without the classifier, which features don't need.
INCEPTION_SAFETENSORS = "inception-2015-12-05.safetensors"
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"


@dataclass(frozen=True)
class SetFeatures:
    """A network on its device, with the names of the kernel and the Fréchet distance over its features.

    `compute` takes images uint8 (N, 3, H, W) on the device, resizes them to `side`, and returns features float32
    (N, dim).
    """

    name: str
    kernel_name: str
    frechet_name: str
    definition: str
    dim: int
    weights_sha256: str
    compute: Callable[[Tensor], Tensor]
    side: int


def alex_features(device: torch.device, listen: Listener, _asked_by: str = "") -> SetFeatures:
    """Load AlexNet, whose weights ship with aecli; raises WeightsError if they are damaged."""
    network = LPIPS.from_net("alex", listen=listen).to(device)

    @torch.inference_mode()
    def compute(images: Tensor) -> Tensor:
        size = (ALEX_SIDE, ALEX_SIDE)
        resized = functional.interpolate(images.float(), size, mode="bilinear", antialias=True, align_corners=False)
        return network.last_activations(resized).mean(dim=(2, 3))

    definition = (
        "AlexNet's fifth convolution after ReLU, averaged over positions (256 features), of images resized to 224×224 "
        "(bilinear, antialiased where that is smaller); not the Inception features of FID and KID."
    )
    return SetFeatures("alex", "kd-alex", "fd-alex", definition, 256, network.weights_sha256, compute,
                       ALEX_SIDE)  # fmt: skip


def inception_features(device: torch.device, _listen: Listener, asked_by: str) -> SetFeatures:
    """Load torch-fidelity's Inception network; raises WeightsError if package or weights are missing or damaged."""
    if not _has_torch_fidelity():
        raise WeightsError(f'{asked_by} needs torch-fidelity\nhint: pip install "aecli[fid]"')
    path = inception_file()
    if path is None:
        raise WeightsError(
            f"{asked_by} needs {INCEPTION_FILE} or {INCEPTION_SAFETENSORS}, which were not found\n"
            f"hint: download {INCEPTION_URL} and put it into {weight_folders()[0]}"
        )
    sha256 = checked_sha256(path, "the Inception network's weights", INCEPTION_URL)
    network = _inception(path).to(device).eval()

    @torch.inference_mode()
    def compute(images: Tensor) -> Tensor:
        with exact_convolutions(images):
            features: Tensor = network(images)[0]
        return features.float()

    definition = (
        "The 2048 pooled features of FID's Inception network (weights of 2015-12-05), of images resized to 299×299 as "
        "TensorFlow 1 does, by torch-fidelity."
    )
    return SetFeatures("inception", "kid", "fid", definition, 2048, sha256, compute, INCEPTION_SIDE)


BUILDERS: dict[str, Callable[[torch.device, Listener, str], SetFeatures]] = {
    "alex": alex_features,
    "inception": inception_features,
}


def load_features(
    name: str, device: torch.device, listen: Listener, asked_by: str = "--features inception"
) -> SetFeatures:
    """Load the network `alex` or `inception`; `auto` is inception if its package and weights are installed, else alex.

    `asked_by` is the option that asks for it.

    Raises:
        WeightsError: package or weights are missing, or the file is damaged.
    """
    if name == "auto":
        name = "inception" if _has_torch_fidelity() and inception_file() is not None else "alex"
    return BUILDERS[name](device, listen, asked_by)


def inception_file() -> Path | None:
    """The Inception network's weights in `$AECLI_WEIGHTS` or torch hub's cache, if they are there."""
    names = (INCEPTION_SAFETENSORS, INCEPTION_FILE)
    return next((path for folder in weight_folders() for name in names if (path := folder / name).is_file()), None)


def _has_torch_fidelity() -> bool:
    return importlib.util.find_spec("torch_fidelity") is not None


def _inception(path: Path) -> "FeatureExtractorInceptionV3":
    """Build torch-fidelity's network with the weights of a file; raises WeightsError unless it holds them.

    Its own loading would execute what is in the file, so it is given one that holds the same tensors.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        if path.suffix == ".safetensors":
            tensors = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)} | read_safetensors(path)
            norms = [name.removesuffix("running_mean") for name in tensors if name.endswith(".running_mean")]
            tensors |= {f"{name}num_batches_tracked": torch.tensor(0) for name in norms}
        else:
            tensors = load_pickle(path)
        file = BytesIO()
        torch.save(tensors, file)
        file.seek(0)
        return FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], file)
    except (UnreadableWeights, RuntimeError, TypeError) as error:  # what load_state_dict raises
        raise WeightsError(
            f"{path} is damaged ({message_of(error)})\nhint: delete it and download {INCEPTION_URL} again"
        ) from error
