"""Bootstrap intervals against SciPy's."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from aecli.metrics.statistics import bootstrap_means


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(1).normal(25, 3, 40),
        np.random.default_rng(2).exponential(0.2, 300),
        np.random.default_rng(3).beta(8, 2, 12),
    ],
    ids=["normal", "exponential", "beta"],
)
def test_interval_agrees_with_scipy(values):
    reference = bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(7)
    ).confidence_interval
    low, high = bootstrap_means(values[:, None])[0]
    # A quantile of 5,000 resamples strays by about 0.04 standard errors of the mean (Maritz and Jarrett); four of that.
    tolerance = 0.15 * values.std() / np.sqrt(len(values))
    assert low == pytest.approx(reference.low, abs=tolerance)
    assert high == pytest.approx(reference.high, abs=tolerance)
    assert high - low > 20 * tolerance
