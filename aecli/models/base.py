"""The interfaces that models implement, for training, inference and the command line."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Losses:
    """Losses of one batch, as scalars: `total` is minimised; `kl` is None if the model has no such term.

    `output` is the reconstructions (N, 3, H, W) that they were computed from, optional; with it, validation needs no
    second forward pass.
    """

    total: Tensor
    reconstruction: Tensor
    kl: Tensor | None = None
    output: Tensor | None = None


class Trainable(nn.Module, ABC):
    """A model that can be trained. A subclass sets `Options`, a frozen dataclass, and takes one as its only argument.

    `train()` and `eval()` turn randomness (dropout, the posterior's noise) on and off. Noise comes from torch's global
    generator, which training seeds for every step.
    """

    Options: ClassVar[type[Any]]
    size_multiple: ClassVar[int] = 1  # image sides must be multiples of it
    betas: ClassVar[tuple[float, float]] = (0.5, 0.999)  # Adam's; the report's
    plateau_epochs: ClassVar[int] = 10  # patience of ReduceLROnPlateau, on the training loss; the report's

    options: Any

    @abstractmethod
    def example_shape(self, image_size: int) -> tuple[int, ...]:
        """Return the shape of one training example, made of an image of that side, without the batch dimension."""

    @abstractmethod
    def loss(self, examples: Tensor) -> Losses:
        """Return the losses of a batch (N, …) of examples, means over all elements.

        A model with `draw_noise` takes its noise as a second argument. In `eval()` mode `loss` is deterministic.
        """

    def draw_noise(self, count: int, image_size: int) -> Tensor | None:
        """Return the noise (count, …) that training passes to `loss` with `count` examples, or None.

        It is made outside `loss` so that an example's noise doesn't depend on the number of processes. Randomness
        inside `loss` (dropout) differs between processes.
        """
        return None


class Autoencoder(Trainable):
    """Maps images float (N, 3, H, W) in [-1, 1], whose sides are multiples of `size_multiple`, to latents and back."""

    size_multiple: ClassVar[int] = 32
    prior_is_normal: ClassVar[bool] = False  # whether training pulls the latents towards N(0, I)

    def example_shape(self, image_size: int) -> tuple[int, ...]:
        """Return (3, S, S)."""
        return (3, image_size, image_size)

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Return the latents (N, …) of images (N, 3, H, W); for a distribution, its mean."""

    def encode_distribution(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the latents (N, …) of images (N, 3, H, W) and, for a Gaussian posterior, its log variances (N, …)."""
        return self.encode(images), None

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Return images (N, 3, H, W) in [-1, 1] of latents (N, …)."""

    @abstractmethod
    def latent_shape(self, image_size: int) -> tuple[int, ...]:
        """Return the shape of one image's latent, without the batch dimension."""

    def forward(self, images: Tensor) -> Tensor:
        """Return reconstructions (N, 3, H, W) in [-1, 1], without randomness in the latent."""
        return self.decode(self.encode(images))


class Prior(Trainable):
    """A distribution over the latents of an autoencoder, trained on the latents of its images.

    Training examples are whitened latents; the whitening is fitted before training, with `partial_fit` batch by batch
    and `fit`. Its options have `latent_channels` and `side`, the shape of the autoencoder's latents.
    """

    @abstractmethod
    def partial_fit(self, latents: Tensor) -> None:
        """Add a batch (N, latent_channels, side, side), on the CPU, to the statistics that whitening is fitted to."""

    @abstractmethod
    def fit(self) -> None:
        """Fit the whitening to all batches so far."""

    @abstractmethod
    def whiten(self, latents: Tensor) -> Tensor:
        """Return the examples (N, …) of latents (N, latent_channels, side, side)."""

    @abstractmethod
    def unwhiten(self, examples: Tensor) -> Tensor:
        """Return the latents (N, latent_channels, side, side) of examples (N, …)."""

    @abstractmethod
    def sample(self, noise: Tensor, steps: int) -> Tensor:
        """Return examples (N, …) generated from standard normal noise of that shape, in `steps` steps."""


def latent_shape(model: Trainable, image_size: int) -> tuple[int, ...]:
    """Return the shape of one image's latent, or of a prior's example, without the batch dimension."""
    shape = model.latent_shape if isinstance(model, Autoencoder) else model.example_shape
    return tuple(shape(image_size))


def mean_squared_error(reconstructions: Tensor, images: Tensor) -> Tensor:
    """Mean over all elements, computed in float32 whatever the precision of the model."""
    return torch.nn.functional.mse_loss(reconstructions.float(), images.float())
