"""What diffusion models are trained on: an autoencoder's latents, shifted and scaled to a variance of about one."""

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aecli.storage.strict_json import is_number

Latents = TypeVar("Latents", NDArray[np.float32], Tensor)


@dataclass(frozen=True)
class LatentScaling:
    """Scaled latents are (z - shift) · factor; by default they are the latents z themselves.

    `factor` (none is 0) and `shift` have one number for all channels, or one a channel. In diffusers' configs they are
    `scaling_factor / latents_std` and `shift_factor` or `latents_mean`.
    """

    factor: tuple[float, ...] = (1.0,)
    shift: tuple[float, ...] = (0.0,)

    @property
    def is_identity(self) -> bool:
        """Whether scaled latents are the latents."""
        return set(self.factor) == {1.0} and set(self.shift) == {0.0}

    def apply(self, latents: Latents) -> Latents:
        """Return the scaled latents of latents (N, C, …), of the same kind and shape."""
        return (latents - _column(self.shift, latents)) * _column(self.factor, latents)

    def undo(self, scaled: Latents) -> Latents:
        """Return the latents (N, C, …) of scaled ones."""
        return scaled / _column(self.factor, scaled) + _column(self.shift, scaled)

    def apply_to_log_variance(self, log_variance: Latents) -> Latents:
        """Return the log variances (N, C, …) of scaled latents, given those of the latents: log σ² + 2 log |factor|."""
        return log_variance + _column(tuple(2 * float(np.log(abs(each))) for each in self.factor), log_variance)

    def __str__(self) -> str:
        """`(z - 0.0609) x 1.5305`, with `shift` and `factor` where there is one a channel."""
        factor = f"{self.factor[0]:g}" if len(self.factor) == 1 else "factor"
        if set(self.shift) == {0.0}:
            return f"z x {factor}"
        return f"(z - {f'{self.shift[0]:g}' if len(self.shift) == 1 else 'shift'}) x {factor}"

    def to_json(self) -> dict[str, Any]:
        """Return `factor` and `shift`, each a number, or a list of one a channel."""
        return {key: values[0] if len(values) == 1 else list(values)
                for key, values in (("factor", self.factor), ("shift", self.shift))}  # fmt: skip

    @classmethod
    def from_json(cls, document: Any) -> "LatentScaling":
        """Return what `to_json` made; ValueError for anything else."""
        if not isinstance(document, dict):
            raise ValueError("latent scaling: not an object")
        factor, shift = (_numbers(document.get(key)) for key in ("factor", "shift"))
        if factor is None or shift is None or 0 in factor:
            raise ValueError(f"latent scaling: invalid {'shift' if shift is None else 'factor'}")
        return cls(factor, shift)


def _numbers(value: Any) -> tuple[float, ...] | None:
    """Return a number or a list of numbers as a tuple; None for anything else."""
    values = value if isinstance(value, list) else [value]
    return tuple(map(float, values)) if values and all(map(is_number, values)) else None


def _column(values: tuple[float, ...], like: Latents) -> Latents:
    """Return one number, or one a channel, in the shape that is broadcast over latents (N, C, …) like these."""
    shape = (len(values), *[1] * (like.ndim - 2))
    if isinstance(like, Tensor):
        return torch.tensor(values, dtype=like.dtype, device=like.device).reshape(shape)
    return np.array(values, dtype=like.dtype).reshape(shape)
