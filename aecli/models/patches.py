"""The linear map of image patches that is best in the squared error: principal components (Pearson 1901)."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEAST_DEVIATION = 1e-3  # of a component, in units of [-1, 1]: smaller ones are not magnified further


class PatchEncoder(nn.Module):
    """From the f×f patches of images (N, 3, H, W) to latents (N, latent_dim, H/f, W/f), linearly."""

    def __init__(self, downsampling: int, latent_dim: int) -> None:
        """Start from a random map; `fit_patches` gives it its values."""
        super().__init__()
        self.downsampling = downsampling
        self.project = nn.Conv2d(3 * downsampling**2, latent_dim, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the latents of images."""
        latents: Tensor = self.project(F.pixel_unshuffle(images, self.downsampling))
        return latents


class PatchDecoder(nn.Module):
    """From latents (N, latent_dim, H/f, W/f) to images (N, 3, H, W), linearly."""

    def __init__(self, downsampling: int, latent_dim: int) -> None:
        """Start from a random map; `fit_patches` gives it its values."""
        super().__init__()
        self.downsampling = downsampling
        self.expand = nn.Conv2d(latent_dim, 3 * downsampling**2, 1)

    def forward(self, latents: Tensor) -> Tensor:
        """Return the images of latents."""
        return F.pixel_shuffle(self.expand(latents), self.downsampling)


@torch.no_grad()
def fit_patches(encoder: PatchEncoder, decoder: PatchDecoder, batches: Iterable[Tensor]) -> None:
    """Make them the principal components of the patches of images (N, 3, H, W): one pass, in float64.

    Latents are the components divided by their standard deviations over these images.

    Raises:
        ValueError: there is no image.
    """
    mean, covariance = patch_moments(batches, encoder.downsampling)
    variances, vectors = torch.linalg.eigh(covariance)  # ascending
    count = encoder.project.out_channels
    components = vectors[:, -count:].flip(1)
    # Of each pair ±v, that of positive sum: which one comes is the library's choice.
    components = components * torch.where(components.sum(0) < 0, -1.0, 1.0)
    deviations = variances[-count:].flip(0).clamp(min=0).sqrt().clamp(min=_LEAST_DEVIATION)
    encoding = (components / deviations).T
    _set(encoder.project, encoding, -encoding @ mean)
    _set(decoder.expand, components * deviations, mean)


def patch_moments(batches: Iterable[Tensor], downsampling: int) -> tuple[Tensor, Tensor]:
    """Return mean (3f²) and covariance (3f², 3f²) of the patches of images (N, 3, H, W), float64 on the CPU.

    Raises:
        ValueError: there is no image.
    """
    numbers = 3 * downsampling**2
    count, total, products = 0, torch.zeros(numbers).double(), torch.zeros(numbers, numbers).double()
    for images in batches:
        patches = F.pixel_unshuffle(images, downsampling).movedim(1, -1).reshape(-1, numbers).double().cpu()
        count, total = count + len(patches), total + patches.sum(0)
        products += patches.T @ patches
    if not count:
        raise ValueError("no images to fit to")
    mean = total / count
    return mean, products / count - torch.outer(mean, mean)


def _set(layer: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    assert layer.bias is not None
    layer.weight.copy_(weight.reshape(layer.weight.shape))
    layer.bias.copy_(bias)
