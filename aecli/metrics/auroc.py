"""The area under the ROC curve (AUROC): how well a score tells two groups of images apart."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aecli.metrics.statistics import CONFIDENCE, Interval

RESAMPLES = 2000
_SEED = 0


@dataclass(frozen=True)
class Auroc:
    """The AUROC of two groups of `normal` and `anomalous` images, with its 95 % bootstrap interval."""

    value: float
    ci95: Interval
    normal: int
    anomalous: int


def auroc(normal: NDArray[np.float64], anomalous: NDArray[np.float64]) -> Auroc:
    """The probability that an anomalous image has the higher score, ties counted half: Mann and Whitney's U / (n·m).

    The interval is the percentile bootstrap's, both groups (n,) and (m,) resampled apart, with a fixed seed.

    Raises:
        ValueError: a group is empty.
    """
    if not len(normal) or not len(anomalous):
        raise ValueError(f"expected scores of both groups, got {len(normal)} and {len(anomalous)}")
    values, places = np.unique(np.concatenate([normal, anomalous]), return_inverse=True)
    of_normal, of_anomalous = places[: len(normal)], places[len(normal) :]

    def area(one: NDArray[np.intp], other: NDArray[np.intp]) -> float:
        counts = np.bincount(one, minlength=len(values))
        below = np.cumsum(counts) - counts / 2
        return float(below[other].sum() / (len(one) * len(other)))

    generator = np.random.default_rng(_SEED)
    resampled = [
        area(of_normal[generator.integers(0, len(normal), len(normal))],
             of_anomalous[generator.integers(0, len(anomalous), len(anomalous))])
        for _ in range(RESAMPLES)
    ]  # fmt: skip
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, (tail, 1 - tail))
    return Auroc(area(of_normal, of_anomalous), (float(low), float(high)), len(normal), len(anomalous))
