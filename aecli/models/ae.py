"""The report's convolutional autoencoder."""

from torch import Tensor

from aecli.models.base import Autoencoder, Encoded
from aecli.models.layers import build_decoder, build_encoder, initialise
from aecli.models.options import AutoencoderOptions


class AE(Autoencoder):
    """Five convolution blocks down to 1/32 of each side, and five up."""

    Options = AutoencoderOptions

    def __init__(self, options: AutoencoderOptions) -> None:
        """Build it with the report's initialisation, from torch's global generator."""
        super().__init__()
        self.options = options
        self.encoder = build_encoder(options.width, options.latent_channels)
        self.decoder = build_decoder(options.width, options.latent_channels)
        initialise(self)

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Encoded:
        """Return latents (N, latent_dim, H/32, W/32) of images (N, 3, H, W) in [-1, 1]."""
        return Encoded(self.encoder(images))

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (N, 3, H, W) in [-1, 1]."""
        images: Tensor = self.decoder(latents)
        return images

    def latent_shape(self, image_size: int) -> tuple[int, ...]:
        """Return (latent_dim, side, side)."""
        side = image_size // self.size_multiple
        return (self.options.latent_channels, side, side)
