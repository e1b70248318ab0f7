"""Gaussian mixtures over whitened scores; the number of components maximises the likelihood of held-out scores."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aecli.data.batches import evenly_spaced
from aecli.progress import Listener, Progress, ignore

TASK = "choosing a mixture"
SIZES = (1, 2, 4, 8, 16, 32)
DIMENSIONS = (8, 16, 32, 64)
_HELD_OUT_EVERY = 5
_MAX_VECTORS = 20_000
_REGULARISATION = 1e-3  # added to variances that are about 1
_SEED = 0


@dataclass(frozen=True)
class Mixture:
    """Components with weights (M,), means (M, d) and lower Cholesky factors (M, d, d) of their covariances."""

    weights: NDArray[np.float64]
    means: NDArray[np.float64]
    factors: NDArray[np.float64]


def fit_mixture(scores: NDArray[np.float32], listen: Listener = ignore) -> Mixture:
    """Fit a mixture to the first `d` of whitened scores (N, K), with the others modelled as independent N(0, 1).

    The number of components and `d` are chosen by the mean log likelihood of every fifth vector, which is held out;
    the best choice is then fitted to all vectors.
    """
    from sklearn.mixture import GaussianMixture

    scores = scores[evenly_spaced(len(scores), _MAX_VECTORS)]
    is_held_out = np.arange(len(scores)) % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
    train, held_out = scores[~is_held_out].astype(np.float64), scores[is_held_out].astype(np.float64)
    candidates = [(d, size) for d in DIMENSIONS if d <= scores.shape[1] for size in SIZES if size * d < len(train)]
    if not candidates:  # too few vectors for more than a standard normal
        return Mixture(np.ones(1), np.zeros((1, 1)), np.ones((1, 1, 1)))
    best: tuple[float, int, int] | None = None
    for done, (d, size) in enumerate(candidates):
        listen(Progress(TASK, done, len(candidates) + 1))
        model = GaussianMixture(size, reg_covar=_REGULARISATION, random_state=_SEED).fit(train[:, :d])
        rest = 0.5 * (held_out[:, d:] ** 2 + np.log(2 * np.pi)).sum(axis=1).mean()
        likelihood = float(model.score(held_out[:, :d]) - rest)
        if best is None or likelihood > best[0]:
            best = likelihood, d, size
    assert best is not None
    listen(Progress(TASK, len(candidates), len(candidates) + 1))
    _, d, size = best
    model = GaussianMixture(size, reg_covar=_REGULARISATION, random_state=_SEED).fit(scores[:, :d].astype(np.float64))
    return Mixture(model.weights_, model.means_, np.linalg.cholesky(model.covariances_))
