"""Priors fitted to a trained model's latents in one pass, and their file.

A Gaussian with a low-rank covariance, and a Gaussian mixture in its principal space.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aecli.errors import CheckpointError, DataError
from aecli.progress import Listener, ignore
from aecli.runs import checkpoints
from aecli.sampling.mixture import Mixture, fit_mixture
from aecli.sampling.pca import StreamingPCA
from aecli.storage.schema import Schema, checked, optional, parsed
from aecli.storage.strict_json import is_count, is_number

RANK = 256
# Old names that the file keeps: `deviations` is `std`, `share` `explained_variance_ratio`, `spread` `statistics`.
_TENSORS = ("mean", "components", "deviations", "mixture.weights", "mixture.means", "mixture.factors")

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class LatentStatistics(Schema):
    """How far latents are from N(0, I).

    `posterior_std` is the mean standard deviation of the posterior, None for a model without one; `latent_std` that of
    the latents (the posterior means) over the data; `divergence` is KL from N(0, I) of a Gaussian with the moments of
    posterior samples, in nats per dimension.
    """

    posterior_std: float | None = checked(optional(is_number), key="posterior")
    latent_std: float = checked(is_number, key="means")
    divergence: float = checked(is_number)


@dataclass(frozen=True)
class FittedPrior:
    """The principal space of `count` latents of dimension D, and their distribution in it.

    `mean` (D,), `components` (K, D) with orthonormal rows, the `std` (K,) along them, which hold
    `explained_variance_ratio` of the variance, from 0 to 1; and a `mixture` over the whitened scores (N, K).
    """

    count: int
    mean: Floats
    components: Floats
    std: Floats
    explained_variance_ratio: float
    mixture: Mixture
    statistics: LatentStatistics

    def whiten(self, latents: Floats) -> Floats:
        """Return the scores (N, K), each of unit variance, of latents (N, D)."""
        return np.asarray(((latents - self.mean) @ self.components.T) / self.std, dtype=np.float32)

    def unwhiten(self, scores: Floats) -> Floats:
        """Return the latents (N, D) of whitened scores (N, K)."""
        return np.asarray(self.mean + (scores * self.std) @ self.components, dtype=np.float32)

    def sample(self, kind: str, temperature: float, seed: int, index: int) -> Floats:
        """Return the whitened scores (K,) of a `gaussian` or `mixture` sample that depends on (seed, index) alone.

        `temperature` multiplies the standard deviations, in a mixture those of each component.
        """
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index])))
        choice = generator.random()
        scores = temperature * generator.standard_normal(len(self.std))
        if kind == "mixture":
            ends = np.cumsum(self.mixture.weights)
            component = min(int(np.searchsorted(ends, choice * ends[-1], side="right")), len(ends) - 1)
            d = self.mixture.means.shape[1]
            scores[:d] = self.mixture.means[component] + self.mixture.factors[component] @ scores[:d]
        return scores.astype(np.float32)

    def save(self, path: Path, document: Mapping[str, Any]) -> None:
        """Write it, with `document`, which says which model it belongs to; raises OutputError."""
        arrays = (self.mean, self.components, self.std, self.mixture.weights, self.mixture.means, self.mixture.factors)
        tensors = {name: torch.from_numpy(array) for name, array in zip(_TENSORS, arrays, strict=True)}
        found = self.statistics
        spread = {"posterior": found.posterior_std, "means": found.latent_std, "divergence": found.divergence}
        own = {"count": self.count, "share": self.explained_variance_ratio, "spread": spread}
        checkpoints.save(path, tensors, {**document, **own})


@dataclass(frozen=True)
class _Document(Schema):
    count: int = checked(is_count)
    explained_variance_ratio: float = checked(is_number, key="share")
    statistics: LatentStatistics = parsed(LatentStatistics.from_document, key="spread")


def load_fitted(path: Path, dim: int) -> tuple[FittedPrior, dict[str, Any]]:
    """Return the prior in `path`, of latents of dimension `dim`, and its document.

    Raises:
        CheckpointError: it is missing, damaged, or belongs to other latents.
    """
    tensors, document = checkpoints.load(path)
    try:
        arrays, values = _checked_arrays(tensors, dim), _Document.from_document(document)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged, or belongs to other latents: {error}") from error
    mean, components, std = (array.astype(np.float32) for array in arrays[:3])
    mixture = Mixture(*(array.astype(np.float64) for array in arrays[3:]))
    ratio, statistics = values.explained_variance_ratio, values.statistics
    return FittedPrior(values.count, mean, components, std, ratio, mixture, statistics), document


def _checked_arrays(tensors: Mapping[str, torch.Tensor], dim: int) -> list[NDArray[Any]]:
    """Return the arrays of `_TENSORS` in that order; raises ValueError if their types, shapes or values are invalid."""
    found = [tensors.get(name) for name in _TENSORS]
    arrays = [each.numpy() for each in found if each is not None and each.dtype in (torch.float32, torch.float64)]
    if len(arrays) < len(_TENSORS):
        raise ValueError("missing tensors")
    _, _, std, weights, means, _ = arrays
    rank, size, d = std.size, weights.size, means.shape[-1] if means.ndim else 0
    shapes = [(dim,), (rank, dim), (rank,), (size,), (size, d), (size, d, d)]
    is_valid = (
        [array.shape for array in arrays] == shapes
        and all(bool(np.isfinite(array).all()) for array in arrays)
        and 0 < d <= rank and bool((std > 0).all()) and bool((weights >= 0).all()) and weights.sum() > 0
    )  # fmt: skip
    if not is_valid:
        raise ValueError("invalid tensors")
    return arrays


class PriorFit:
    """A fit in progress: `add` latents batch by batch, then `finish`."""

    def __init__(self) -> None:
        """Begin without latents."""
        self._pca = StreamingPCA(RANK)
        self._std_sum, self._variance_sum, self._posterior_size = 0.0, 0.0, 0

    def add(self, means: Floats, log_variances: Floats | None) -> None:
        """Add latents (N, …) and, where there is a posterior, its log variances (N, …)."""
        self._pca.add(means.reshape(len(means), -1))
        if log_variances is not None:
            self._std_sum += float(np.exp(0.5 * log_variances, dtype=np.float64).sum())
            self._variance_sum += float(np.exp(log_variances, dtype=np.float64).sum())
            self._posterior_size += log_variances.size

    def finish(self, listen: Listener = ignore) -> FittedPrior:
        """Fit the mixture and return the prior.

        Raises:
            DataError: the latents don't vary.
        """
        pca = self._pca
        if not len(pca.std):
            raise DataError("a prior can't be fitted: all latents are the same\nhint: check the images and the model")
        mixture = fit_mixture((pca.scores() / pca.std).astype(np.float32), listen)
        ratio = float((pca.std**2).sum() / pca.variance)
        mean, components, std = (array.astype(np.float32) for array in (pca.mean, pca.components, pca.std))
        return FittedPrior(pca.count, mean, components, std, ratio, mixture, self._statistics())

    def _statistics(self) -> LatentStatistics:
        pca = self._pca
        dim, rank = len(pca.mean), len(pca.std)
        noise = self._variance_sum / self._posterior_size if self._posterior_size else 0.0
        residual = max(0.0, pca.variance - float((pca.std**2).sum())) / max(1, dim - rank)  # variance per dimension
        variances = np.concatenate([pca.std**2, np.full(dim - rank, residual)]) + noise
        variances = np.maximum(variances, np.finfo(np.float32).tiny)
        divergence = 0.5 * float((variances - 1 - np.log(variances) + pca.mean**2).mean())
        posterior_std = self._std_sum / self._posterior_size if self._posterior_size else None
        return LatentStatistics(posterior_std, float(np.sqrt(pca.variance / dim)), divergence)
