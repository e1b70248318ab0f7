"""Mean and standard deviation of latents, channel by channel, and how many of their codes are in use."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aecli.models.codes import count_stats
from aecli.models.latent_scaling import LatentScaling
from aecli.storage.schema import Schema, checked, list_of, nested, parsed
from aecli.storage.strict_json import is_count, is_number

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Of `count` numbers a channel: their mean and the sum of squared distances from it, each float64 (C,)."""

    count: int
    mean: Floats
    squares: Floats

    @classmethod
    def of(cls, latents: NDArray[np.float32], log_variances: NDArray[np.float32] | None = None) -> "Moments":
        """Return those of latents (N, C, …), or with `log_variances` of a posterior's samples around them."""
        rows = _by_channel(latents)
        mean = rows.mean(1)
        squares = np.square(rows - mean[:, None]).sum(1)
        if log_variances is not None:
            squares += np.exp(_by_channel(log_variances)).sum(1)
        return cls(rows.shape[1], mean, squares)

    def __add__(self, other: "Moments") -> "Moments":
        """Return those of both (Chan et al., 1979)."""
        count = self.count + other.count
        distance = other.mean - self.mean
        mean = self.mean + distance * other.count / count
        between = np.square(distance) * (self.count * other.count / count)
        return Moments(count, mean, self.squares + other.squares + between)

    @property
    def std(self) -> Floats:
        """The standard deviation of each channel (C,)."""
        return np.asarray(np.sqrt(self.squares / self.count))

    @property
    def overall_std(self) -> float:
        """The standard deviation of all numbers."""
        between = np.square(self.mean - self.mean.mean()).mean()
        return float(np.sqrt((self.squares / self.count).mean() + between))

    @property
    def scaling(self) -> LatentScaling:
        """The factor that gives them a standard deviation of 1."""
        std = self.overall_std
        return LatentScaling((1 / std,)) if math.isfinite(std) and std > 0 else LatentScaling()


def _by_channel(latents: NDArray[np.float32]) -> Floats:
    """Return latents (N, C, …) as float64 (C, …)."""
    return np.moveaxis(latents, 1, 0).reshape(latents.shape[1], -1).astype(np.float64)


def add_moments(parts: Iterable[Moments | None]) -> Moments | None:
    """Return the moments of all parts, in their order; None where there are none."""
    total = None
    for each in parts:
        if each is not None:
            total = each if total is None else total + each
    return total


@dataclass(frozen=True)
class CodeStatistics(Schema):
    """Means over the codebooks: the share of codes that occur, and perplexity exp(-Σ p·log p) of their shares p."""

    codebooks: int = checked(is_count)
    codebook_size: int = checked(is_count)
    usage: float = checked(is_number)
    perplexity: float = checked(is_number)

    @classmethod
    def of(cls, counts: NDArray[np.int64]) -> "CodeStatistics":
        """Return those of how often each code occurs, (codebooks, codes)."""
        usage, perplexity = (float(each) for each in count_stats(torch.from_numpy(counts).double()).values())
        codebooks, size = counts.shape
        return cls(codebooks, size, usage, perplexity)


@dataclass(frozen=True)
class LatentSetStatistics(Schema):
    """statistics.json: of a model's own latents of `images` images, mirrored ones not counted.

    `mean` and `std` have a number a channel, `overall_mean` and `overall_std` are of all numbers. `latent_scaling` is
    what stored latents were scaled by, or in the formats that hold them as they are, what is to be done.
    """

    images: int = checked(is_count)
    mean: list[float] = checked(list_of(is_number))
    std: list[float] = checked(list_of(is_number))
    overall_mean: float = checked(is_number)
    overall_std: float = checked(is_number)
    latent_scaling: LatentScaling = parsed(LatentScaling.from_json)
    codes: CodeStatistics | None = nested(CodeStatistics, None)

    def to_json(self) -> dict[str, Any]:
        """Return what `from_document` reads."""
        return {**asdict(self), "latent_scaling": self.latent_scaling.to_json()}
