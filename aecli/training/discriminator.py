"""PatchGAN: a discriminator of patches, with the hinge loss and LeCam regularisation.

Isola et al., "Image-to-image translation with conditional adversarial networks", CVPR 2017 (patches of 70×70 pixels);
Lim and Ye, "Geometric GAN", 2017 (hinge); Tseng et al., "Regularizing generative adversarial networks under limited
data", CVPR 2021 (LeCam).
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from aecli.models.layers import Conv2d

MIN_SIDE = 32  # of an image, in pixels, at which the logits have a place or more
LECAM_WEIGHT, LECAM_DECAY = 1e-3, 0.999
_WIDTH, _GROUPS = 64, 32


class Discriminator(nn.Module):
    """Logits (N, 1, h, w) of patches of images (N, 3, H, W) in [-1, 1]: high for photographs, low for reconstructions.

    GroupNorm, because batch statistics would depend on how a batch is split. The moving averages of the logits that
    LeCam pulls towards are buffers, and so part of a checkpoint.
    """

    def __init__(self) -> None:
        """Build it with weights from torch's global generator: N(0, 0.02²), zero biases."""
        super().__init__()
        layers: list[nn.Module] = [Conv2d(3, _WIDTH, 4, 2, 1), nn.LeakyReLU(0.2)]
        for channels, wider, stride in ((64, 128, 2), (128, 256, 2), (256, 512, 1)):
            layers += [Conv2d(channels, wider, 4, stride, 1, bias=False), nn.GroupNorm(_GROUPS, wider)]
            layers.append(nn.LeakyReLU(0.2))
        self.layers = nn.Sequential(*layers, Conv2d(8 * _WIDTH, 1, 4, 1, 1))
        for layer in self.layers:
            if isinstance(layer, Conv2d):
                nn.init.normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        self.real_mean = nn.Buffer(torch.zeros(()))
        self.fake_mean = nn.Buffer(torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images (N, 3, H, W), no side shorter than `MIN_SIDE`."""
        logits: Tensor = self.layers(images)
        return logits

    def loss(self, fakes: Tensor, reals: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of telling reconstructions from photographs, and the means (2,) of both sides' logits.

        Hinge: ½·mean(relu(1 - D(real)) + relu(1 + D(fake))); LeCam: distances to the other side's moving average.
        """
        real, fake = self(reals), self(fakes)
        hinge = 0.5 * (relu(1 - real).mean() + relu(1 + fake).mean())
        lecam = relu(real - self.fake_mean).square().mean() + relu(self.real_mean - fake).square().mean()
        return hinge + LECAM_WEIGHT * lecam, torch.stack([real.mean(), fake.mean()]).detach()

    @torch.no_grad()
    def update_means(self, means: Tensor) -> None:
        """Move LeCam's averages towards the means (2,) of a step's logits."""
        self.real_mean.lerp_(means[0], 1 - LECAM_DECAY)
        self.fake_mean.lerp_(means[1], 1 - LECAM_DECAY)
