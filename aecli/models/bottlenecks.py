"""What lies between encoder and decoder of `resnet`; quantisers have files of their own."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from aecli.models.base import Encoded
from aecli.models.posterior import Posterior

_FIRST_LOG_VARIANCE = -6.0  # of latents of unit variance: at the beginning noise hides little of them


class Bottleneck(nn.Module, ABC):
    """From what an encoder makes (N, in_channels, h, w) to what the decoder takes, (N, latent_dim, h, w).

    The first `latent_dim` channels of the input have unit variance over the training images at the beginning.
    """

    term_weights: Mapping[str, float] = {}
    stat_names: tuple[str, ...] = ()
    bits: float | None = None  # of a position of the latent, if it is discrete
    codebook_size: int | None = None  # codes of each of its codebooks
    code_levels: tuple[int, ...] | None = None  # of the digits of a code's index: `Autoencoder.code_levels`

    def __init__(self, in_channels: int, latent_dim: int) -> None:
        """Build it."""
        super().__init__()
        self.in_channels, self.latent_dim = in_channels, latent_dim

    @abstractmethod
    def forward(self, hidden: Tensor, noise: Tensor | None = None) -> Encoded:
        """Return the latents, terms and statistics; in `eval()` mode without randomness."""

    def distribution(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the latents (N, latent_dim, h, w) and, of a Gaussian posterior, its log variances."""
        return self(hidden).latent, None

    def indices(self, latents: Tensor) -> Tensor | None:
        """Return the codes (N, codebooks, h, w), int64, nearest to latents (N, latent_dim, h, w), if it has codes."""
        return None

    def latents(self, indices: Tensor) -> Tensor:
        """Return the latents (N, latent_dim, h, w) of codes (N, codebooks, h, w)."""
        raise NotImplementedError(f"{type(self).__name__} has no codes")

    def draw_noise(self, shape: tuple[int, ...], device: torch.device) -> Tensor | None:
        """Return the noise that `forward` takes for latents of that shape, or None."""
        return None

    def prepare(self, hidden: Iterable[Tensor], importance: Tensor | None = None) -> None:
        """Fit it to batches of what the encoder makes, before the first step; by default nothing.

        `importance` (latent_dim) is how far the image moves where a channel of the latent moves by 1.
        """

    def step_sums(self, observed: Mapping[str, Tensor], first: int, count: int) -> list[Tensor]:
        """Return the sums of `Trainable.step_sums`."""
        return []

    def after_step(self, sums: Sequence[Tensor]) -> None:
        """Update averages, as `Trainable.after_step`."""


class Identity(Bottleneck):
    """Latents are what the encoder makes."""

    def __init__(self, latent_dim: int) -> None:
        """Build it."""
        super().__init__(latent_dim, latent_dim)

    def forward(self, hidden: Tensor, noise: Tensor | None = None) -> Encoded:
        """Return the latents as they are."""
        return Encoded(hidden)


class Gaussian(Bottleneck):
    """A diagonal Gaussian posterior, whose KL divergence from N(0, I) is a term of weight β (Kingma, Welling 2014)."""

    def __init__(self, latent_dim: int, beta: float) -> None:
        """Build it; noise is small at first."""
        super().__init__(2 * latent_dim, latent_dim)
        self.term_weights = {"kl": beta}
        self.log_variance = nn.Parameter(torch.full((latent_dim, 1, 1), _FIRST_LOG_VARIANCE))

    def posterior(self, hidden: Tensor) -> Posterior:
        """Return the posterior: mean, and log variance within [-30, 20], each float32 (N, latent_dim, h, w)."""
        mean, residual = hidden.float().chunk(2, dim=1)
        return Posterior.bounded(mean, self.log_variance + residual)

    def forward(self, hidden: Tensor, noise: Tensor | None = None) -> Encoded:
        """Return a sample of the posterior, or in `eval()` its mean, and `kl`."""
        return self.posterior(hidden).encoded(noise, self.training)

    def distribution(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the posterior's mean and log variance."""
        posterior = self.posterior(hidden)
        return posterior.mean, posterior.log_variance

    def draw_noise(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Return standard normal noise from torch's global generator."""
        return torch.randn(shape, device=device)
