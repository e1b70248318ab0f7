"""Priors that are fitted to a trained model's latents in one pass, and the file that keeps them.

A Gaussian of full covariance, of as low a rank as the latents need, and a Gaussian mixture in its principal space.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aecli.errors import CheckpointError
from aecli.runs import checkpoints
from aecli.sampling.mixture import Mixture, fit_mixture
from aecli.sampling.pca import StreamingPCA
from aecli.storage.strict_json import is_count, is_number

RANK = 256
FAR = 0.1  # nats a number: the divergence from N(0, I) from which samples of that are taken to be noise
_TENSORS = ("mean", "components", "deviations", "mixture.weights", "mixture.means", "mixture.factors")

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class LatentStatistics:
    """How latents lie against N(0, I), under which all deviations but that of the means would be 1.

    `posterior` is the mean standard deviation of the posterior, None for a model without one; `means` that of the
    latents (the posteriors' means) over the data; `divergence` that of a Gaussian of all their moments from N(0, I), in
    nats a number.
    """

    posterior: float | None
    means: float
    divergence: float

    @property
    def is_far(self) -> bool:
        """Whether samples of N(0, I) are no latents that the decoder knows."""
        return self.divergence > FAR


@dataclass(frozen=True)
class FittedPrior:
    """The principal space of `count` latents of D numbers, and what they look like in it.

    `mean` (D,), `components` (K, D) with orthonormal rows, `deviations` (K,) along them, the `share` of the variance
    that they hold, a `mixture` of scores divided by the deviations, and the latents' `spread`.
    """

    count: int
    mean: Floats
    components: Floats
    deviations: Floats
    share: float
    mixture: Mixture
    spread: LatentStatistics

    def expand(self, scores: Floats) -> Floats:
        """Return latents (N, D) of standardised scores (N, K)."""
        return np.asarray(self.mean + (scores * self.deviations) @ self.components, dtype=np.float32)

    def project(self, latents: Floats) -> Floats:
        """Return the standardised scores (N, K) of latents (N, D)."""
        return np.asarray(((latents - self.mean) @ self.components.T) / self.deviations, dtype=np.float32)

    def draw(self, kind: str, temperature: float, seed: int, index: int) -> Floats:
        """Return the standardised scores (K,) of a `gaussian` or `mixture` sample that depends on (seed, index) alone.

        `temperature` multiplies the deviations, in a mixture those of each component.
        """
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index])))
        choice = generator.random()
        scores = temperature * generator.standard_normal(len(self.deviations))
        if kind == "mixture":
            ends = np.cumsum(self.mixture.weights)
            component = min(int(np.searchsorted(ends, choice * ends[-1], side="right")), len(ends) - 1)
            d = self.mixture.means.shape[1]
            scores[:d] = self.mixture.means[component] + self.mixture.factors[component] @ scores[:d]
        return scores.astype(np.float32)

    def save(self, path: Path, document: Mapping[str, Any]) -> None:
        """Write it, with what `document` says of where it is from; raises OutputError."""
        arrays = (self.mean, self.components, self.deviations, self.mixture.weights, self.mixture.means,
                  self.mixture.factors)  # fmt: skip
        tensors = {name: torch.from_numpy(array) for name, array in zip(_TENSORS, arrays, strict=True)}
        spread = vars(self.spread)
        checkpoints.save(path, tensors, {**document, "count": self.count, "share": self.share, "spread": spread})


def load_fitted(path: Path, numbers: int) -> tuple[FittedPrior, dict[str, Any]]:
    """Return the prior in `path`, of latents of so many numbers, and its document.

    Raises:
        CheckpointError: it is not there, damaged, or of other latents.
    """
    tensors, document = checkpoints.load(path)
    try:
        arrays = [tensors[name].numpy() for name in _TENSORS]
        mean, components, deviations, weights, means, factors = arrays
        rank, (size, d) = len(deviations), means.shape
        shapes = [(numbers,), (rank, numbers), (rank,), (size,), (size, d), (size, d, d)]
        said = document["spread"]
        spread = LatentStatistics(said["posterior"], said["means"], said["divergence"])
        makes_sense = (
            [array.shape for array in arrays] == shapes
            and all(array.dtype.kind == "f" and bool(np.isfinite(array).all()) for array in arrays)
            and 0 < d <= rank and size > 0 and bool((deviations > 0).all()) and bool((weights >= 0).all())
            and weights.sum() > 0 and is_count(document["count"]) and is_number(document["share"])
            and (spread.posterior is None or is_number(spread.posterior))
            and is_number(spread.means) and is_number(spread.divergence)
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is no prior that aecli wrote") from error
    if not makes_sense:
        raise CheckpointError(f"{path} is damaged, or of other latents")
    mean, components, deviations = (array.astype(np.float32) for array in (mean, components, deviations))
    mixture = Mixture(*(array.astype(np.float64) for array in (weights, means, factors)))
    return FittedPrior(document["count"], mean, components, deviations, document["share"], mixture, spread), document


class PriorFit:
    """A fit under way: latents go in by the batch, then `finish` makes the prior."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._pca = StreamingPCA(RANK)
        self._deviations, self._squares, self._numbers = 0.0, 0.0, 0

    def add(self, means: Floats, log_variances: Floats | None) -> None:
        """Take in latents (N, …) and, where there is a posterior, its log variances."""
        self._pca.add(means.reshape(len(means), -1))
        if log_variances is not None:
            self._deviations += float(np.exp(0.5 * log_variances, dtype=np.float64).sum())
            self._squares += float(np.exp(log_variances, dtype=np.float64).sum())
            self._numbers += log_variances.size

    def finish(self) -> Iterator[tuple[int, int] | FittedPrior]:
        """Yield (done, of how many) while a mixture is fitted, and last the prior.

        Raises:
            ValueError: the latents don't vary.
        """
        pca = self._pca
        if not len(pca.deviations):
            raise ValueError("all latents are the same")
        standardised = (pca.scores() / pca.deviations).astype(np.float32)
        for said in fit_mixture(standardised):
            if isinstance(said, Mixture):
                held = float((pca.deviations**2).sum() / pca.variance)
                mean, components, deviations = (
                    array.astype(np.float32) for array in (pca.mean, pca.components, pca.deviations)
                )
                yield FittedPrior(pca.count, mean, components, deviations, held, said, self._spread())
            else:
                yield said

    def _spread(self) -> LatentStatistics:
        pca = self._pca
        numbers = len(pca.mean)
        noise = self._squares / self._numbers if self._numbers else 0.0
        rest = max(0.0, pca.variance - float((pca.deviations**2).sum())) / max(1, numbers - len(pca.deviations))
        variances = np.concatenate([pca.deviations**2, np.full(numbers - len(pca.deviations), rest)]) + noise
        variances = np.maximum(variances, np.finfo(np.float32).tiny)
        divergence = 0.5 * float((variances - 1 - np.log(variances) + pca.mean**2).mean())
        posterior = self._deviations / self._numbers if self._numbers else None
        return LatentStatistics(posterior, float(np.sqrt(pca.variance / numbers)), divergence)
