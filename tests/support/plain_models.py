"""Models with known weights, and one without batch statistics, whose gradients depend on no split into batches."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aecli.models import registry
from aecli.models.base import Autoencoder, Encoded


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

    @property
    def term_weights(self) -> dict[str, float]:
        return {"kl": 1e-2}

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Encoded:
        latents = self.encoder(images)
        if self.training:
            assert noise is not None
            latents = latents + 0.1 * noise
        return Encoded(latents, {"kl": latents.square().mean()})

    def decode(self, latents: Tensor) -> Tensor:
        return torch.tanh(self.decoder(latents))

    def draw_noise(self, count: int, image_size: int) -> Tensor:
        return torch.randn(count, *self.latent_shape(image_size))

    def latent_shape(self, image_size: int) -> tuple[int, ...]:
        return (self.options.channels, image_size // 32, image_size // 32)
