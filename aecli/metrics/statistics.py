"""What many images' numbers say together: means with bootstrap intervals, and paired comparisons."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Interval = tuple[float, float]

RESAMPLES = 5000
CONFIDENCE = 0.95
_SEED = 0
_INDICES_AT_ONCE = 2**20


@dataclass(frozen=True)
class Comparison:
    """Two predictions a and b measured on the same images; differences are a − b.

    `mean_difference` and `ci95` leave out images where either number is infinite, and are None where too few are left
    (1 for the mean, 2 for the interval). `wins_a`, `wins_b` and `ties` count every image.
    """

    mean_difference: float | None
    ci95: Interval | None
    wins_a: int
    wins_b: int
    ties: int


def bootstrap_mean(values: Values, resamples: int = RESAMPLES) -> Interval | None:
    """The 95 % percentile bootstrap interval of the mean of `values` (N,); None where N < 2.

    Efron and Tibshirani, "An introduction to the bootstrap" (1993), section 13.3. The random numbers are the same at
    every call; memory does not grow with the number of resamples.
    """
    count = len(values)
    if count < 2:
        return None
    generator = np.random.default_rng(_SEED)
    at_once = max(1, _INDICES_AT_ONCE // count)
    means = np.empty(resamples)
    for start in range(0, resamples, at_once):
        chunk = means[start : start + at_once]
        chunk[:] = values[generator.integers(0, count, (len(chunk), count))].mean(axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(low), float(high)


def compare(a: Values, b: Values, higher_is_better: bool) -> Comparison:
    """Compare two predictions image by image: `a` and `b` (N,) are their numbers on the same images, in order."""
    finite = np.isfinite(a) & np.isfinite(b)
    differences = a[finite] - b[finite]
    a_higher, b_higher = int(np.count_nonzero(a > b)), int(np.count_nonzero(b > a))
    return Comparison(
        mean_difference=float(differences.mean()) if len(differences) else None,
        ci95=bootstrap_mean(differences),
        wins_a=a_higher if higher_is_better else b_higher,
        wins_b=b_higher if higher_is_better else a_higher,
        ties=len(a) - a_higher - b_higher,
    )
