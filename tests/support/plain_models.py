"""Models with known weights, and one without batch statistics, whose gradients depend on no split into batches."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aecli.models import registry
from aecli.models.base import Autoencoder, Losses, mean_squared_error


def build(name: str, **options: object) -> Autoencoder:
    """A registered model with these options and the weights of seed 0."""
    torch.manual_seed(0)
    return registry.build(name, registry.resolve_options(name, options))


@dataclass(frozen=True)
class Options:
    """How many latent channels."""

    channels: int = 8


class PlainVAE(Autoencoder):
    """Patches to latents by one convolution, with noise, and back; one parameter is never used."""

    Options = Options
    prior_is_normal = True

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options
        self.encoder = nn.Conv2d(3, options.channels, 32, 32)
        self.decoder = nn.ConvTranspose2d(options.channels, 3, 32, 32)
        self.unused = nn.Linear(2, 2)

    def encode(self, images: Tensor) -> Tensor:
        latents: Tensor = self.encoder(images)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        return torch.tanh(self.decoder(latents))

    def draw_noise(self, count: int, image_size: int) -> Tensor:
        return torch.randn(count, *self.latent_shape(image_size))

    def loss(self, images: Tensor, noise: Tensor | None = None) -> Losses:
        latents = self.encode(images)
        if self.training:
            assert noise is not None
            latents = latents + 0.1 * noise
        error = mean_squared_error(self.decode(latents), images)
        kl = latents.square().mean()
        return Losses(total=error + 1e-2 * kl, reconstruction=error, kl=kl)

    def latent_shape(self, image_size: int) -> tuple[int, ...]:
        return (self.options.channels, image_size // 32, image_size // 32)
