"""The contract that every model keeps: what training, inference and the command line ask of it."""

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


class Autoencoder(nn.Module, ABC):
    """Images to latents and back. A subclass sets `Options`, a frozen dataclass, and takes one as its only argument.

    Images are float tensors (N, 3, H, W) in [-1, 1], both sides multiples of `size_multiple`. As in any `nn.Module`,
    `train()` and `eval()` say whether randomness (dropout, the posterior's noise) is on. Noise is drawn from torch's
    global generator, which training seeds anew for every step.
    """

    Options: ClassVar[type[Any]]
    size_multiple: ClassVar[int] = 32
    prior_is_normal: ClassVar[bool] = False  # whether training pulls the latents towards N(0, I)

    options: Any

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Return the latent of images (N, 3, H, W); where it is a distribution, its mean."""

    def code(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the latent of images (N, 3, H, W) and, where it is a Gaussian's mean, that one's log variance."""
        return self.encode(images), None

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Return images (N, 3, H, W) in [-1, 1] from latents."""

    @abstractmethod
    def loss(self, images: Tensor) -> Losses:
        """Return the losses of a batch (N, 3, H, W), each a scalar and a mean over everything.

        A model that draws noise for it (see `draw_noise`) takes that as a second argument.
        """

    def draw_noise(self, count: int, image_size: int) -> Tensor | None:
        """Return the noise (count, …) that training gives to `loss` with as many images, or None for a model without.

        Drawn apart from `loss`, each image gets its own, the same however many processes share a batch. What `loss`
        draws itself (dropout) is each process's own.
        """
        return None

    @abstractmethod
    def latent_shape(self, image_size: int) -> tuple[int, ...]:
        """Return the shape of one image's latent, without the batch."""

    def forward(self, images: Tensor) -> Tensor:
        """Return reconstructions (N, 3, H, W) in [-1, 1], without randomness in the latent."""
        return self.decode(self.encode(images))


def mean_squared_error(reconstructions: Tensor, images: Tensor) -> Tensor:
    """Mean over everything, in float32 whatever the precision of the model."""
    return torch.nn.functional.mse_loss(reconstructions.float(), images.float())
