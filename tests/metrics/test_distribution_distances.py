"""Distances between sets of distributions whose distance is known."""

import numpy as np
import pytest

from aecli.metrics import distribution_distances
from aecli.metrics.distribution_distances import frechet_distance, kernel_distance, manifold, nearest_distances
from tests.support.vectors import normal


def test_kernel_distance_is_that_of_the_populations():
    # For one number, E (xy + 1)³ = m₃(x) m₃(y) + 3 m₂(x) m₂(y) + 3 m₁(x) m₁(y) + 1 with the raw moments m.
    one, other = np.array([0.0, 1.0, 0.0]), np.array([0.5, 1.25, 1.625])  # of N(0, 1) and N(0.5, 1)

    def expected(a, b):
        return a[2] * b[2] + 3 * a[1] * b[1] + 3 * a[0] * b[0] + 1

    known = expected(one, one) + expected(other, other) - 2 * expected(one, other)
    _, (low, high) = kernel_distance(normal(3, 4000, 1), normal(4, 4000, 1, mean=0.5))
    assert low < known < high
    assert high - low < known


def test_the_interval_holds_the_true_distance_as_often_as_it_says():
    known = 3.578125  # of the populations above: 2.640625 + 3·0.0625 + 3·0.25
    hits = 0
    for seed in range(200):
        _, (low, high) = kernel_distance(normal(seed, 300, 1), normal(1000 + seed, 300, 1, mean=0.5))
        hits += low < known < high
    assert 0.88 <= hits / 200 <= 0.99


def test_frechet_distance_of_known_gaussians():
    # Of covariances that commute: |shift|² + Σ (σ₁ - σ₂)².
    one = np.array([1.0, 2.0, 0.5]) * normal(5, 200_000, 3)
    other = np.array([1.5, 1.0, 0.5]) * normal(6, 200_000, 3) + np.array([0.0, 0.0, 2.0])
    assert frechet_distance(one, other) == pytest.approx(4 + 0.25 + 1.0, rel=0.02)
    shift = np.array([3.0, -1.0, 0.25])
    assert frechet_distance(one, one + shift) == pytest.approx(shift @ shift, rel=1e-6)


def test_frechet_distance_of_fewer_vectors_than_numbers_is_finite():
    few = normal(7, 5, 40)
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-4)


def test_manifold_of_sets_of_known_answers():
    some = normal(8, 200)
    same = manifold(some, some)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert same.density == pytest.approx(1, abs=0.2)  # itself, and each of which it is one of the five nearest, or less
    far = manifold(some, some + 1000)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)
    collapsed = manifold(some, some[:1] + 1e-3 * normal(9, 200))
    assert collapsed.precision == 1
    assert collapsed.recall < 0.05 and collapsed.coverage < 0.2


def test_far_from_the_origin_the_balls_are_the_same(real, fake):
    near, far = manifold(real, fake), manifold(real + 1e6, fake + 1e6)
    assert vars(far) == pytest.approx(vars(near), abs=1e-12)


def test_nearest_distances(real, fake):
    found = nearest_distances(fake, real)
    by_hand = np.linalg.norm(fake[:, None] - real[None], axis=-1).min(axis=1)
    assert found == pytest.approx(by_hand, rel=1e-12)
    assert nearest_distances(real + 1e5, real + 1e5).tolist() == [0.0] * len(real)


def test_blocks_and_order_change_nothing(real, fake, monkeypatch):
    def all_figures(one, other):
        return [kernel_distance(one, other)[0], frechet_distance(one, other), *vars(manifold(one, other)).values()]

    whole = all_figures(real, fake)
    monkeypatch.setattr(distribution_distances, "_BLOCK_ROWS", 7)
    assert all_figures(real[::-1], np.roll(fake, 5, axis=0)) == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize(
    "function, least",
    [(kernel_distance, 3), (frechet_distance, 2), (manifold, 6), (nearest_distances, 1)],
)
def test_too_few_vectors(function, least):
    function(normal(1, least), normal(2, least))
    with pytest.raises(ValueError, match=f"at least {least} vectors"):
        function(normal(1, least - 1), normal(2, least))
