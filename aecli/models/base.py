"""The contracts that models keep: what training, inference and the command line ask of them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Losses:
    """Scalars of one batch: `total` is what is minimised; `kl` is None where the model has no such term.

    `output` are the reconstructions (N, 3, H, W) that they were taken of; a model that gives them saves validation a
    second pass.
    """

    total: Tensor
    reconstruction: Tensor
    kl: Tensor | None = None
    output: Tensor | None = None


class Trainable(nn.Module, ABC):
    """What training asks of a model. A subclass sets `Options`, a frozen dataclass, and takes one as its only argument.

    As in any `nn.Module`, `train()` and `eval()` say whether randomness (dropout, the posterior's noise) is on. Noise
    is drawn from torch's global generator, which training seeds anew for every step.
    """

    Options: ClassVar[type[Any]]
    size_multiple: ClassVar[int] = 1  # which the sides of images are multiples of
    betas: ClassVar[tuple[float, float]] = (0.5, 0.999)  # Adam's; the report's
    plateau_epochs: ClassVar[int] = 10  # without a lower training loss, after which the rate is halved; the report's

    options: Any

    @abstractmethod
    def example_shape(self, image_size: int) -> tuple[int, ...]:
        """Return the shape of one example that it learns from, of an image of that side, without the batch."""

    @abstractmethod
    def loss(self, examples: Tensor) -> Losses:
        """Return the losses of a batch (N, …) of examples, each a scalar and a mean over everything.

        A model that draws noise for it (see `draw_noise`) takes that as a second argument. In `eval()` mode the same
        batch gives the same losses.
        """

    def draw_noise(self, count: int, image_size: int) -> Tensor | None:
        """Return the noise (count, …) that training gives to `loss` with as many examples, or None for a model without.

        Drawn apart from `loss`, each example gets its own, the same however many processes share a batch. What `loss`
        draws itself (dropout) is each process's own.
        """
        return None


class Autoencoder(Trainable):
    """Images to latents and back.

    Images are float tensors (N, 3, H, W) in [-1, 1], both sides multiples of `size_multiple`; they are what it learns
    from.
    """

    size_multiple: ClassVar[int] = 32
    prior_is_normal: ClassVar[bool] = False  # whether training pulls the latents towards N(0, I)

    def example_shape(self, image_size: int) -> tuple[int, ...]:
        """Return (3, S, S)."""
        return (3, image_size, image_size)

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Return the latent of images (N, 3, H, W); where it is a distribution, its mean."""

    def encode_distribution(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the latent of images (N, 3, H, W) and, where it is a Gaussian's mean, that one's log variance."""
        return self.encode(images), None

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Return images (N, 3, H, W) in [-1, 1] from latents."""

    @abstractmethod
    def latent_shape(self, image_size: int) -> tuple[int, ...]:
        """Return the shape of one image's latent, without the batch."""

    def forward(self, images: Tensor) -> Tensor:
        """Return reconstructions (N, 3, H, W) in [-1, 1], without randomness in the latent."""
        return self.decode(self.encode(images))


class Prior(Trainable):
    """A distribution over the latents of an autoencoder, learnt from those of its images.

    It learns from latents that it has reduced itself, having observed some of them before. Its options have
    `latent_channels` and `side`, the shape of the autoencoder's latents.
    """

    @abstractmethod
    def partial_fit(self, latents: Tensor) -> None:
        """Take note of a batch (N, latent_channels, side, side) on the CPU, before training begins."""

    @abstractmethod
    def fit(self) -> None:
        """Settle, after what was observed, how latents are reduced."""

    @abstractmethod
    def whiten(self, latents: Tensor) -> Tensor:
        """Return the examples (N, …) of latents (N, latent_channels, side, side)."""

    @abstractmethod
    def unwhiten(self, examples: Tensor) -> Tensor:
        """Return the latents (N, latent_channels, side, side) that examples (N, …) stand for."""

    @abstractmethod
    def sample(self, noise: Tensor, steps: int) -> Tensor:
        """Return the examples that standard normal noise of their shape becomes, in so many steps."""


def latent_shape(model: Trainable, image_size: int) -> tuple[int, ...]:
    """Return the shape of one image's latent, which of a prior is the one that it learns, without the batch."""
    shape = model.latent_shape if isinstance(model, Autoencoder) else model.example_shape
    return tuple(shape(image_size))


def mean_squared_error(reconstructions: Tensor, images: Tensor) -> Tensor:
    """Mean over everything, in float32 whatever the precision of the model."""
    return torch.nn.functional.mse_loss(reconstructions.float(), images.float())
