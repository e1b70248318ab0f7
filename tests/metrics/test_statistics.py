import numpy as np
import pytest

from aecli.metrics import statistics
from aecli.metrics.statistics import bootstrap_means, compare


def bootstrap_mean(values):
    return bootstrap_means(values[:, None])[0]


def test_interval_is_the_same_twice_and_in_chunks(monkeypatch):
    values = np.random.default_rng(0).normal(size=50)
    first = bootstrap_mean(values)
    monkeypatch.setattr(statistics, "_CHUNK_INDICES", 7 * len(values))
    assert bootstrap_mean(values) == pytest.approx(first, abs=1e-12)


def test_too_few_values_have_no_interval():
    assert bootstrap_mean(np.array([])) is None
    assert bootstrap_mean(np.array([1.0])) is None
    assert bootstrap_mean(np.array([2.0, 2.0])) == (2.0, 2.0)


def test_a_paired_comparison_is_the_interval_of_the_differences():
    rng = np.random.default_rng(0)
    images = rng.normal(25, 5, 30)  # images differ far more than predictions do
    a, b = images + 0.5 + rng.normal(0, 0.1, 30), images
    found = compare(a, b, higher_is_better=True, ci95=bootstrap_mean(a - b))
    assert found.mean_difference == pytest.approx((a - b).mean())
    assert 0.4 < found.ci95[0] < found.ci95[1] < 0.6
    assert (found.wins_a, found.wins_b, found.ties) == (int((a > b).sum()), int((a < b).sum()), 0)


def test_wins_follow_the_metrics_direction_and_infinite_ones_count():
    a = np.array([1.0, 2.0, np.inf, np.inf, 3.0])
    b = np.array([2.0, 1.0, np.inf, 5.0, 3.0])
    higher = compare(a, b, True, None)
    assert (higher.wins_a, higher.wins_b, higher.ties) == (2, 1, 2)
    assert higher.mean_difference == 0.0
    lower = compare(a, b, False, None)
    assert (lower.wins_a, lower.wins_b, lower.ties) == (1, 2, 2)
    nothing = compare(np.array([np.inf]), np.array([1.0]), True, None)
    assert (nothing.mean_difference, nothing.wins_a) == (None, 1)


def test_columns_share_their_resamples_and_leave_out_what_is_not_finite():
    rng = np.random.default_rng(0)
    columns = rng.normal(size=(40, 4))
    columns[:, 1] = 2 * columns[:, 0] + 3
    columns[[3, 7], 2] = np.inf
    columns[1:, 3] = np.nan
    found = bootstrap_means(columns)
    low, high = found[0]
    assert found[1] == pytest.approx((2 * low + 3, 2 * high + 3))
    assert found[2] == bootstrap_mean(columns[np.isfinite(columns[:, 2]), 2])
    assert found[3] is None
