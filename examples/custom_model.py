"""A custom model: an autoencoder with residual blocks and a small latent, in under 60 lines.

    aecli train examples.custom_model:ResidualAE --recipe quick -o channels=24
    aecli reconstruct --model examples.custom_model:ResidualAE

To register it under a short name, give your package an entry point in its pyproject.toml:

    [project.entry-points."aecli.models"]
    resae = "your_package.custom_model:ResidualAE"
"""

from dataclasses import dataclass

from torch import Tensor, nn

from aecli.models.base import Autoencoder, Encoded


@dataclass(frozen=True)
class Options:
    channels: int = 32
    latent_dim: int = 16


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.GroupNorm(1, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class ResidualAE(Autoencoder):
    Options = Options
    size_multiple = 8

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options
        c = options.channels
        down = [layer for _ in range(3) for layer in (Residual(c), nn.Conv2d(c, c, 4, 2, 1))]
        up = [layer for _ in range(3) for layer in (nn.ConvTranspose2d(c, c, 4, 2, 1), Residual(c))]
        self.encoder = nn.Sequential(nn.Conv2d(3, c, 3, padding=1), *down, nn.Conv2d(c, options.latent_dim, 1))
        self.decoder = nn.Sequential(nn.Conv2d(options.latent_dim, c, 1), *up, nn.Conv2d(c, 3, 3, padding=1), nn.Tanh())

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Encoded:
        return Encoded(self.encoder(images))

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(latents)

    def latent_shape(self, image_size: int) -> tuple[int, ...]:
        return (self.options.latent_dim, image_size // 8, image_size // 8)
