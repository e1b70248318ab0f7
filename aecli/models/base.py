"""The interfaces that models implement, for training, inference and the command line."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Encoded:
    """What an encoder makes of a batch of images.

    `latent` (N, …) is what `decode` takes. `terms` are losses of the bottleneck, such as `kl`: float32 scalars, means
    over the batch, not yet weighted. `stats` are scalars that are reported and never minimised. `observed` are tensors
    (N, …) without gradients, from which the model updates its own averages once a step (`Trainable.step_sums`).
    """

    latent: Tensor
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    stats: Mapping[str, Tensor] = field(default_factory=dict)
    observed: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """What a training step compares: `output` with `target`, both (N, …); the others are as in `Encoded`."""

    output: Tensor
    target: Tensor
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    stats: Mapping[str, Tensor] = field(default_factory=dict)
    observed: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Kept:
    """What a latent keeps of an image: `numbers` of the `pixels`' (three each), or bits a pixel if it is discrete."""

    numbers: int
    pixels: int
    bits_per_pixel: float | None = None

    def __str__(self) -> str:
        """`1/12`, or `1.5 bits a pixel`; a share with a large denominator is rounded to 1/N or a percentage."""
        if self.bits_per_pixel is not None:
            return f"{self.bits_per_pixel:.3g} bits a pixel"
        share = Fraction(self.numbers, self.pixels)
        if share.numerator == 1 or share.denominator <= 64:
            return str(share)
        if abs((nearest := round(1 / share)) * share - 1) < 0.01:
            return f"1/{nearest}"
        return f"{100 * float(share):.3g} %"

    def to_json(self) -> dict[str, float | None]:
        """Return the numbers an image, their share of the pixels' numbers, and the bits a pixel (None: continuous)."""
        return {
            "numbers": self.numbers, "share": self.numbers / self.pixels, "bits_per_pixel": self.bits_per_pixel,
        }  # fmt: skip


class Trainable(nn.Module, ABC):
    """A model that can be trained. A subclass sets `Options`, a frozen dataclass, and takes one as its only argument.

    It says what it makes of a batch (`predict`); what is minimised is the objective's matter. `train()` and `eval()`
    turn randomness (dropout, the posterior's noise) on and off. Noise comes from torch's global generator, which
    training seeds for every step.
    """

    Options: ClassVar[type[Any]]
    size_multiple: int = 1  # image sides must be multiples of it; may be set on the instance
    stat_names: tuple[str, ...] = ()  # the keys of its `stats`
    betas: ClassVar[tuple[float, float]] = (0.5, 0.999)  # Adam's; the report's
    closed_form: ClassVar[bool] = False  # whether `prepare` is all of its training; it has no parameters then
    plateau_epochs: ClassVar[int] = 10  # patience of ReduceLROnPlateau, on the training loss; the report's
    example_dtype: ClassVar[torch.dtype] = torch.float32  # of training examples
    predicts_log_likelihoods: ClassVar[bool] = False  # whether `predict`'s outputs are those of its targets, in nats

    options: Any

    @abstractmethod
    def example_shape(self, image_size: int) -> tuple[int, ...]:
        """Return the shape of one training example, made of an image of that side, without the batch dimension."""

    @property
    def term_weights(self) -> Mapping[str, float]:
        """The weight in the loss of each of its `terms`, all of which are named here."""
        return {}

    @abstractmethod
    def predict(self, examples: Tensor, noise: Tensor | None = None) -> Prediction:
        """Return what a training step compares for examples (N, …), given the noise that `draw_noise` made for them.

        Without noise it is drawn here. In `eval()` mode the result is deterministic.
        """

    def draw_noise(self, count: int, image_size: int) -> Tensor | None:
        """Return the noise (count, …) that training passes to `predict` with `count` examples, or None.

        It is made outside `predict` so that an example's noise doesn't depend on the number of processes. Randomness
        inside `predict` (dropout) differs between processes.
        """
        return None

    def step_sums(self, observed: Mapping[str, Tensor], first: int, count: int) -> list[Tensor]:
        """Return float32 sums over a process's part of a step's batch, for averages that the model keeps in buffers.

        `observed` are those of `predict`, of the examples from `first` on of the batch's `count`. Torch's global
        generator is in the same state in every process. Training adds the sums over all processes and hands them to
        `after_step`, so that they don't depend on how a batch is cut.
        """
        return []

    def after_step(self, sums: Sequence[Tensor]) -> None:
        """Update the model's own averages after an optimizer step, given `step_sums` of its whole batch."""


class Autoencoder(Trainable):
    """Maps images float (N, 3, H, W) in [-1, 1], whose sides are multiples of `size_multiple`, to latents and back."""

    size_multiple: int = 32
    prior_is_normal: ClassVar[bool] = False  # whether training pulls the latents towards N(0, I)
    decoder_modules: ClassVar[tuple[str, ...]] = ("decoder",)  # what `--train decoder` trains

    def example_shape(self, image_size: int) -> tuple[int, ...]:
        """Return (3, S, S)."""
        return (3, image_size, image_size)

    @abstractmethod
    def encode(self, images: Tensor, noise: Tensor | None = None) -> Encoded:
        """Return the latents (N, …) of images (N, 3, H, W), and the bottleneck's terms and statistics.

        Of a distribution the latent is a sample in `train()` mode, made from `noise` if that is given, and its mean in
        `eval()` mode.
        """

    def encode_distribution(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the latents (N, …) of images (N, 3, H, W) and, for a Gaussian posterior, its log variances (N, …)."""
        return self.encode(images).latent, None

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Return images (N, 3, H, W) in [-1, 1] of latents (N, …)."""

    @abstractmethod
    def latent_shape(self, image_size: int) -> tuple[int, ...]:
        """Return the shape of one image's latent, without the batch dimension."""

    @property
    def bits_per_latent(self) -> float | None:
        """Bits that one position of the latent takes where it is discrete, or None."""
        return None

    @property
    def codebook_size(self) -> int | None:
        """Codes of each codebook where the latent is discrete, or None."""
        return None

    def indices(self, latents: Tensor) -> Tensor | None:
        """Return the codes (N, codebooks, h, w), int64, of latents (N, …), or None where these are not discrete."""
        return None

    @property
    def code_levels(self) -> tuple[int, ...] | None:
        """Levels of the digits of a code's index, whose product is `codebook_size`, the first digit counting 1.

        A model that has them has `latents`; a prior is then trained on its codes.
        """
        return None

    def latents(self, indices: Tensor) -> Tensor:
        """Return the latents (N, …) of codes (N, codebooks, h, w): what `indices` takes."""
        raise NotImplementedError(f"{type(self).__name__} has no codes")

    def kept(self, image_size: int) -> "Kept":
        """Return what the latent keeps of an image of that side."""
        shape = self.latent_shape(image_size)
        pixels = image_size**2
        bits = self.bits_per_latent
        positions = math.prod(shape[1:])
        return Kept(math.prod(shape), 3 * pixels, None if bits is None else bits * positions / pixels)

    def prepare(self, batches: Iterable[Tensor]) -> None:
        """Set what is fitted to data before the first step of a new run, such as a codebook; by default nothing.

        `batches` are images (N, 3, S, S) in [-1, 1] as the steps will see them.
        """

    def predict(self, examples: Tensor, noise: Tensor | None = None) -> Prediction:
        """Return reconstructions of images (N, 3, H, W) beside the images."""
        encoded = self.encode(examples, noise)
        return Prediction(self.decode(encoded.latent), examples, encoded.terms, encoded.stats, encoded.observed)

    def forward(self, images: Tensor) -> Tensor:
        """Return reconstructions (N, 3, H, W) in [-1, 1]; in `eval()` mode without randomness in the latent."""
        return self.decode(self.encode(images).latent)


class Prior(Trainable):
    """A distribution over the latents of an autoencoder, trained on the latents of its images.

    Training examples are whitened latents; the whitening is fitted before training, with `partial_fit` batch by batch
    and `fit`; then `fit_examples` sees the examples. Its options have `latent_channels` and `side`, the shape of the
    autoencoder's latents.

    One that `takes_codes` learns codes, int64 (N, codebooks, side, side), in place of latents. Its options have the
    autoencoder's `levels` of a code, `codebooks` and `side`.

    Where it learns classes, its options have their names, `classes`; an example then has one more channel, which is
    the number of its class everywhere, or the count of `classes` where that is not known.
    """

    takes_codes: ClassVar[bool] = False

    @property
    def contains_worse(self) -> bool:
        """Whether it contains a worse model of the same, so that `sample` takes a `guidance` without labels too."""
        return False

    def noise_shape(self) -> tuple[int, ...]:
        """Return the shape of the noise that `sample` takes for an example: that of an example without its class."""
        channels, *sides = self.example_shape(0)
        return (channels - bool(getattr(self.options, "classes", ())), *sides)

    def split_labels(self, examples: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return examples (N, …) without their classes, and the numbers int64 (N,) of these, if it learns any."""
        if not getattr(self.options, "classes", ()):
            return examples, None
        return examples[:, :-1], examples[:, -1, 0, 0].long()

    def no_labels(self, count: int, device: torch.device) -> Tensor:
        """Return the number int64 (count,) that stands for an unknown class."""
        return torch.full((count,), len(self.options.classes), device=device)

    @abstractmethod
    def partial_fit(self, latents: Tensor) -> None:
        """Add a batch (N, latent_channels, side, side), on the CPU, to the statistics that whitening is fitted to."""

    @abstractmethod
    def fit(self) -> None:
        """Fit the whitening to all batches so far."""

    def fit_examples(self, examples: Tensor) -> None:  # noqa: B027, most have nothing to fit
        """Fit what else begins as a statistic, to all training examples (N, …), on the CPU, before the first step."""

    @abstractmethod
    def whiten(self, latents: Tensor) -> Tensor:
        """Return the examples (N, …) of latents (N, latent_channels, side, side)."""

    @abstractmethod
    def unwhiten(self, examples: Tensor) -> Tensor:
        """Return the latents (N, latent_channels, side, side) of examples (N, …)."""

    @abstractmethod
    def sample(self, noise: Tensor, steps: int, temperature: float = 1.0) -> Tensor:
        """Return examples (N, …), without classes, made of standard normal noise of that shape in `steps` steps.

        The lower the `temperature`, the nearer they are to the likeliest ones. A prior that learns classes takes two
        arguments more: `labels` int64 (N,), the numbers of classes to draw of, without which nothing is known of a
        class; and `guidance`, which above 1 exaggerates what is particular to the class (Ho and Salimans, 2022). One
        that `contains_worse` takes a `guidance` without labels: above 1 it exaggerates what it is better at.
        """


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into `eval()` mode inside the block; afterwards each of its parts is in the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def kept(model: Trainable, image_size: int) -> Kept | None:
    """Return what an autoencoder's latent keeps of an image of that side; None for a prior."""
    return model.kept(image_size) if isinstance(model, Autoencoder) else None


def latent_shape(model: Trainable, image_size: int) -> tuple[int, ...]:
    """Return the shape of one image's latent, or of what a prior makes of it, without the batch dimension."""
    if isinstance(model, Prior):
        return model.noise_shape()
    shape = model.latent_shape if isinstance(model, Autoencoder) else model.example_shape
    return tuple(shape(image_size))
