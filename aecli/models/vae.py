"""The report's variational autoencoder (Kingma and Welling, ICLR 2014; weight β: Higgins et al., ICLR 2017)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aecli.models.base import Autoencoder, Encoded
from aecli.models.layers import build_decoder, build_encoder, initialise
from aecli.models.options import VAEOptions


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over latents: `mean` and `log_variance`, each (N, latent_dim, H/32, W/32), float32."""

    mean: Tensor
    log_variance: Tensor

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """Return z = μ + ε·exp(½ log σ²), with ε the standard normal `noise`, or from torch's global generator."""
        if noise is None:
            # In contiguous order, so that a step's noise doesn't depend on the memory format.
            noise = torch.randn(self.mean.shape, device=self.mean.device)
        return self.mean + noise * torch.exp(0.5 * self.log_variance)

    def kl_divergence(self) -> Tensor:
        """KL from N(0, I): -½·mean(1 + log σ² - μ² - σ²), the mean over all elements."""
        return -0.5 * torch.mean(1 + self.log_variance - self.mean.square() - self.log_variance.exp())


class VAE(Autoencoder):
    """The AE with a Gaussian posterior, whose KL divergence from N(0, I) is a term of the loss with weight β."""

    Options = VAEOptions
    prior_is_normal = True

    def __init__(self, options: VAEOptions) -> None:
        """Build it with the report's initialisation, from torch's global generator."""
        super().__init__()
        self.options = options
        self.encoder = build_encoder(options.width, 16 * options.width)
        self.encoder.append(nn.Conv2d(16 * options.width, 2 * options.latent_channels, 3, 1, 1))
        self.decoder = build_decoder(options.width, options.latent_channels)
        initialise(self)

    def posterior(self, images: Tensor) -> Posterior:
        """Return the posterior of images (N, 3, H, W) in [-1, 1]."""
        mean, log_variance = self.encoder(images).float().chunk(2, dim=1)
        return Posterior(mean, log_variance)

    @property
    def term_weights(self) -> Mapping[str, float]:
        """β of `kl`."""
        return {"kl": self.options.beta}

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Encoded:
        """Return latents (N, latent_dim, H/32, W/32) and `kl`: a sample of the posterior, or in `eval()` its mean."""
        posterior = self.posterior(images)
        latents = posterior.sample(noise) if self.training else posterior.mean
        return Encoded(latents, {"kl": posterior.kl_divergence()})

    def encode_distribution(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the posterior's mean and log variance, each (N, latent_dim, H/32, W/32)."""
        posterior = self.posterior(images)
        return posterior.mean, posterior.log_variance

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (N, 3, H, W) in [-1, 1]."""
        images: Tensor = self.decoder(latents)
        return images

    def draw_noise(self, count: int, image_size: int) -> Tensor:
        """Return standard normal noise (count, latent_dim, side, side) from torch's global generator."""
        return torch.randn(count, *self.latent_shape(image_size), device=next(self.parameters()).device)

    def latent_shape(self, image_size: int) -> tuple[int, ...]:
        """Return (latent_dim, side, side)."""
        side = image_size // self.size_multiple
        return (self.options.latent_channels, side, side)
