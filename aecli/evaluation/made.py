"""Predictions that no source holds: they are made of the ground truth while it is measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from aecli.configs import EvalConfig
from aecli.data.decoding.conversions import Decoded
from aecli.data.image_ref import ImageRef
from aecli.progress import Listener
from aecli.runtime.distributed import Distributed

if TYPE_CHECKING:
    from aecli.models.base import Kept


@dataclass(frozen=True)
class ModelFigures:
    """What a model keeps of an image, its parameters, and how many images a second all workers together reconstruct.

    Reading and measuring take no part in `images_per_s`. `floor_of` names the models that it is the floor of.
    """

    kept: "Kept"
    parameters: int
    precision: str
    images_per_s: float
    floor_of: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return them as JSON values."""
        return {
            "kept": self.kept.to_json(), "parameters": self.parameters, "precision": self.precision,
            "images_per_s": self.images_per_s, "floor_of": list(self.floor_of),
        }  # fmt: skip


class MadePredictions(Protocol):
    """Predictions made in memory, as `names`; `read` is called from several threads."""

    @property
    def names(self) -> Sequence[str]:
        """What they are called, in the order of what `read` returns."""

    def begin(self, truths: Sequence[ImageRef]) -> None:
        """Take all images of the ground truth, in their order, before any is read."""

    def read(self, truth: ImageRef) -> tuple[Decoded, list[Decoded]]:
        """Return an image of the ground truth as 8 bits, and the predictions made of it, of its size; DecodeError."""

    def figures(self, distributed: Distributed) -> list[ModelFigures]:
        """Return the figures of each, once all is read; all processes call it."""


# Loads what makes predictions, and returns it with the options that say how the ground truth is read for it.
Load = Callable[[EvalConfig, Distributed, Listener], tuple[EvalConfig, MadePredictions]]
