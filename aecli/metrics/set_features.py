"""What networks see in an image as a whole: a vector an image, by which sets of images are compared."""

import torch
from torch import Tensor
from torch.nn import functional

from aecli.metrics.lpips import LPIPS
from aecli.progress import Listener, ignore

ALEX_SIDE = 224  # that AlexNet was trained on


class AlexFeatures:
    """The fifth convolution of AlexNet, rectified, its mean over all places: 256 numbers an image.

    Images are brought to 224×224 first (bilinear, antialiased where that is smaller). Its weights ship with aecli.
    """

    side = ALEX_SIDE

    def __init__(self, device: torch.device, listen: Listener = ignore) -> None:
        """Load the weights; raises WeightsError where they can't be had."""
        self._net = LPIPS.from_net("alex", listen=listen).to(device)
        self.weights_sha256 = self._net.weights_sha256

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the features float32 (N, 256) of uint8 (N, 3, H, W) on the device."""
        size = (ALEX_SIDE, ALEX_SIDE)
        resized = functional.interpolate(images.float(), size, mode="bilinear", antialias=True, align_corners=False)
        return self._net.deepest(resized).mean(dim=(2, 3))
