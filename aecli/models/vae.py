"""The report's variational autoencoder (Kingma and Welling, ICLR 2014; weight β: Higgins et al., ICLR 2017)."""

from torch import Tensor

from aecli.models.layers import Conv2d, build_decoder, build_encoder, initialise
from aecli.models.options import VAEOptions
from aecli.models.posterior import GaussianAutoencoder, Posterior


class VAE(GaussianAutoencoder):
    """The AE with a Gaussian posterior, whose KL divergence from N(0, I) is a term of the loss with weight β."""

    Options = VAEOptions
    prior_is_normal = True

    def __init__(self, options: VAEOptions) -> None:
        """Build it with the report's initialisation, from torch's global generator."""
        super().__init__()
        self.options = options
        self.encoder = build_encoder(options.width, 16 * options.width)
        self.encoder.append(Conv2d(16 * options.width, 2 * options.latent_channels, 3, 1, 1))
        self.decoder = build_decoder(options.width, options.latent_channels)
        initialise(self)

    def posterior(self, images: Tensor) -> Posterior:
        """Return the posterior of images (N, 3, H, W) in [-1, 1]."""
        mean, log_variance = self.encoder(images).float().chunk(2, dim=1)
        return Posterior(mean, log_variance)

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (N, 3, H, W) in [-1, 1]."""
        images: Tensor = self.decoder(latents)
        return images

    def latent_shape(self, image_size: int) -> tuple[int, ...]:
        """Return (latent_dim, side, side)."""
        side = image_size // self.size_multiple
        return (self.options.latent_channels, side, side)
