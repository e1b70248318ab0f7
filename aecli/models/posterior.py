"""A Gaussian posterior over latents (Kingma and Welling, ICLR 2014), and autoencoders that have one."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from aecli.models.base import Autoencoder, Encoded

_LOG_VARIANCE = (-30.0, 20.0)  # as in latent diffusion (Rombach et al., CVPR 2022)


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over latents: `mean` and `log_variance`, each (N, latent_dim, H/f, W/f), float32."""

    mean: Tensor
    log_variance: Tensor

    @classmethod
    def bounded(cls, mean: Tensor, log_variance: Tensor) -> "Posterior":
        """Return one whose log variances are kept within [-30, 20]."""
        return cls(mean, log_variance.clamp(*_LOG_VARIANCE))

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """Return z = μ + ε·exp(½ log σ²), with ε the standard normal `noise`, or from torch's global generator."""
        if noise is None:
            # In contiguous order, so that a step's noise doesn't depend on the memory format.
            noise = torch.randn(self.mean.shape, device=self.mean.device)
        return self.mean + noise * torch.exp(0.5 * self.log_variance)

    def kl_divergence(self) -> Tensor:
        """KL from N(0, I): -½·mean(1 + log σ² - μ² - σ²), the mean over all elements."""
        return -0.5 * torch.mean(1 + self.log_variance - self.mean.square() - self.log_variance.exp())

    def encoded(self, noise: Tensor | None, training: bool) -> Encoded:
        """Return a sample while `training`, else the mean, and `kl`."""
        return Encoded(self.sample(noise) if training else self.mean, {"kl": self.kl_divergence()})


class GaussianAutoencoder(Autoencoder):
    """An autoencoder with a posterior, whose KL divergence from N(0, I) is a term of the loss with weight β."""

    @abstractmethod
    def posterior(self, images: Tensor) -> Posterior:
        """Return the posterior of images (N, 3, H, W) in [-1, 1]."""

    @property
    def term_weights(self) -> Mapping[str, float]:
        """β of `kl`."""
        return {"kl": self.options.beta}

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Encoded:
        """Return latents (N, latent_dim, H/f, W/f) and `kl`: a sample of the posterior, or in `eval()` its mean."""
        return self.posterior(images).encoded(noise, self.training)

    def encode_distribution(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the posterior's mean and log variance, each (N, latent_dim, H/f, W/f)."""
        posterior = self.posterior(images)
        return posterior.mean, posterior.log_variance

    def draw_noise(self, count: int, image_size: int) -> Tensor:
        """Return standard normal noise (count, latent_dim, side, side) from torch's global generator."""
        return torch.randn(count, *self.latent_shape(image_size), device=next(self.parameters()).device)
