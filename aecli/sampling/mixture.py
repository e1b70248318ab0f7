"""Gaussian mixtures over standardised scores, their size chosen by what they make of scores held out."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aecli.data.batches import evenly_spaced

SIZES = (1, 2, 4, 8, 16, 32)
DIMENSIONS = (8, 16, 32, 64)
_HELD_OUT = 5  # every fifth
_MOST_VECTORS = 20_000
_REGULARISATION = 1e-3  # of variances that are about 1
_SEED = 0


@dataclass(frozen=True)
class Mixture:
    """Components with weights (M,), means (M, d) and lower Cholesky factors (M, d, d) of their covariances."""

    weights: NDArray[np.float64]
    means: NDArray[np.float64]
    factors: NDArray[np.float64]


def fit_mixture(scores: NDArray[np.float32]) -> Iterator[tuple[int, int] | Mixture]:
    """Fit mixtures to the first few of standardised scores (N, K), the rest taken for N(0, 1) and independent.

    Which size and how many scores is decided by the mean log likelihood of every fifth vector, which the candidates
    have not seen; the best one is then fitted to all.

    Yields:
        (done, of how many) as candidates are tried, and last the best Mixture.
    """
    from sklearn.mixture import GaussianMixture

    scores = scores[evenly_spaced(len(scores), _MOST_VECTORS)]
    is_held_out = np.arange(len(scores)) % _HELD_OUT == _HELD_OUT - 1
    seen, held_out = scores[~is_held_out].astype(np.float64), scores[is_held_out].astype(np.float64)
    candidates = [(d, size) for d in DIMENSIONS if d <= scores.shape[1] for size in SIZES if size * d < len(seen)]
    if not candidates:  # a few vectors show no more than that they are standardised
        yield Mixture(np.ones(1), np.zeros((1, 1)), np.ones((1, 1, 1)))
        return
    best: tuple[float, int, int] | None = None
    for done, (d, size) in enumerate(candidates):
        yield done, len(candidates) + 1
        model = GaussianMixture(size, reg_covar=_REGULARISATION, random_state=_SEED).fit(seen[:, :d])
        rest = 0.5 * (held_out[:, d:] ** 2 + np.log(2 * np.pi)).sum(axis=1).mean()
        likelihood = float(model.score(held_out[:, :d]) - rest)
        if best is None or likelihood > best[0]:
            best = likelihood, d, size
    assert best is not None
    yield len(candidates), len(candidates) + 1
    _, d, size = best
    model = GaussianMixture(size, reg_covar=_REGULARISATION, random_state=_SEED).fit(scores[:, :d].astype(np.float64))
    yield Mixture(model.weights_, model.means_, np.linalg.cholesky(model.covariances_))
