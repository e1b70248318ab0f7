"""Vectors of low rank."""

import numpy as np


def vectors(seed, count, rank, dim):
    """Vectors of that rank around a mean that is far from 0, with deviations that fall."""
    generator = np.random.default_rng(seed)
    scores = generator.standard_normal((count, rank)) * np.linspace(5, 0.5, rank)
    return scores @ generator.standard_normal((rank, dim)) + 3 * generator.standard_normal(dim)
