"""Sets of vectors that distances are taken between."""

import numpy as np


def normal(seed, count, numbers=6, mean=0.0, deviation=1.0):
    """Vectors (count, numbers) from a Gaussian."""
    return mean + deviation * np.random.default_rng(seed).standard_normal((count, numbers))
