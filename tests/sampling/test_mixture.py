"""The size of a mixture, chosen for known clusters."""

import numpy as np
import pytest

from aecli.sampling import mixture as mixtures
from aecli.sampling.mixture import fit_mixture


def clusters(count=900):
    generator = np.random.default_rng(3)
    centres = np.array([[-1.2, 0], [1.2, 0.4], [0, -1.3]])[generator.integers(3, size=count)]
    pair = centres + 0.15 * generator.standard_normal((count, 2))
    whole = np.column_stack([pair, generator.standard_normal((count, 14))])
    return ((whole - whole.mean(axis=0)) / whole.std(axis=0)).astype(np.float32)


def fitted_mixture(scores):
    progress = []
    found = fit_mixture(scores, progress.append)
    assert [each.done for each in progress] == list(range(len(progress)))
    assert {each.total for each in progress} <= {len(progress)}
    return found


def test_three_clusters_are_found_by_what_is_held_out():
    found = fitted_mixture(clusters())
    assert found.weights.sum() == pytest.approx(1)
    heavy = found.means[found.weights > 0.05]
    assert len({tuple(np.round(mean[:2])) for mean in heavy}) == 3
    covariance = found.factors @ found.factors.transpose(0, 2, 1)
    assert (np.diagonal(covariance, axis1=1, axis2=2)[:, :2] < 0.1).all()


def test_one_gaussian_is_enough_for_one():
    scores = np.random.default_rng(4).standard_normal((800, 20)).astype(np.float32)
    assert len(fitted_mixture(scores).weights) == 1


def test_a_few_scores_make_a_mixture_too():
    found = fitted_mixture(np.random.default_rng(5).standard_normal((3, 2)).astype(np.float32))
    assert len(found.weights) == 1


def test_at_most_so_many_vectors_are_fitted(monkeypatch):
    monkeypatch.setattr(mixtures, "_MAX_VECTORS", 400)
    seen = []
    from sklearn.mixture import GaussianMixture

    fit = GaussianMixture.fit
    monkeypatch.setattr(GaussianMixture, "fit", lambda self, rows: (seen.append(len(rows)), fit(self, rows))[1])
    fitted_mixture(clusters(2000))
    assert set(seen) == {320, 400}
