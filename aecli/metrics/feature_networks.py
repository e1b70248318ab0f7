"""What networks see in an image as a whole: a vector an image, by which sets of images are compared."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from aecli.errors import WeightsError, message_of
from aecli.metrics.lpips import LPIPS
from aecli.metrics.network_weights import DAMAGE, checked_sha256, weight_folders
from aecli.progress import Listener

ALEX_SIDE = 224  # that AlexNet was trained on
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"


class SetFeatures(Protocol):
    """A network on its device: uint8 (N, 3, H, W) → float32 (N, D)."""

    name: str
    kernel_name: str  # what the kernel and the Fréchet distance over these features are called
    frechet_name: str
    definition: str
    numbers: int  # of an image
    weights_sha256: str

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features (N, D) of uint8 images (N, 3, H, W) on the device."""


class AlexFeatures:
    """The fifth convolution of AlexNet, rectified, its mean over all places: 256 numbers an image."""

    name = "alex"
    kernel_name, frechet_name = "kd-alex", "fd-alex"
    numbers = 256
    definition = (
        "AlexNet's fifth convolution, rectified, mean over places (256 numbers), of images brought to 224×224 "
        "(bilinear, antialiased where that is smaller); not the Inception features of FID and KID."
    )

    def __init__(self, device: torch.device, listen: Listener) -> None:
        """Load the weights, which ship with aecli; raises WeightsError where they are damaged."""
        self._net = LPIPS.from_net("alex", listen=listen).to(device)
        self.weights_sha256 = self._net.weights_sha256

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the features float32 (N, 256) of uint8 (N, 3, H, W) on the device."""
        size = (ALEX_SIDE, ALEX_SIDE)
        resized = functional.interpolate(images.float(), size, mode="bilinear", antialias=True, align_corners=False)
        return self._net.deepest(resized).mean(dim=(2, 3))


class InceptionFeatures:
    """The pooled features of FID's Inception network, as torch-fidelity computes them: 2048 numbers an image."""

    name = "inception"
    kernel_name, frechet_name = "kid", "fid"
    numbers = 2048
    definition = (
        "The 2048 pooled features of FID's Inception network (weights of 2015-12-05), of images brought to 299×299 as "
        "TensorFlow 1 does, by torch-fidelity."
    )

    def __init__(self, device: torch.device, _listen: Listener) -> None:
        """Load the weights; raises WeightsError where the package or the file isn't there."""
        if importlib.util.find_spec("torch_fidelity") is None:
            raise WeightsError('--features inception needs torch-fidelity: pip install "aecli[fid]"')
        path = inception_file()
        if path is None:
            raise WeightsError(
                f"--features inception needs {INCEPTION_FILE}, which is not here\n"
                f"fetch {INCEPTION_URL} and put it into {weight_folders()[0]}"
            )
        self.weights_sha256 = _checked(path)
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self._net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(path)).to(device)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the features float32 (N, 2048) of uint8 (N, 3, H, W) on the device."""
        features: Tensor = self._net(images)[0]
        return features.float()


_BUILDERS: dict[str, Callable[[torch.device, Listener], Any]] = {"alex": AlexFeatures, "inception": InceptionFeatures}


def load_features(name: str, device: torch.device, listen: Listener) -> SetFeatures:
    """Return the network called `name`: alex, inception, or auto, which is inception where all of it is here.

    Raises:
        WeightsError: it can't be had, or its file is damaged.
    """
    if name == "auto":
        has_inception = importlib.util.find_spec("torch_fidelity") is not None and inception_file() is not None
        name = "inception" if has_inception else "alex"
    features: SetFeatures = _BUILDERS[name](device, listen)
    return features


def inception_file() -> Path | None:
    """Where the Inception network's weights lie: in `$AECLI_WEIGHTS`, or in torch hub's cache; None if nowhere."""
    return next((path for folder in weight_folders() if (path := folder / INCEPTION_FILE).is_file()), None)


def _checked(path: Path) -> str:
    """Return a file's SHA-256; raises WeightsError unless it begins as its name says, and holds tensors alone."""
    sha256 = checked_sha256(path, "the Inception network's weights", INCEPTION_URL)
    try:
        torch.load(path, map_location="meta", weights_only=True)  # torch-fidelity's own reading would run what is in it
    except DAMAGE as error:
        raise WeightsError(
            f"{path} is damaged; delete it and fetch {INCEPTION_URL} anew ({message_of(error)})"
        ) from error
    return sha256
