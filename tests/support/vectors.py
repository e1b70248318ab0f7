"""Vectors of known distributions, and tensors of images."""

import numpy as np
import torch


def vectors(seed, count, rank, dim):
    """Vectors of that rank around a mean that is far from 0, with deviations that fall."""
    generator = np.random.default_rng(seed)
    scores = generator.standard_normal((count, rank)) * np.linspace(5, 0.5, rank)
    return scores @ generator.standard_normal((rank, dim)) + 3 * generator.standard_normal(dim)


def normal(seed, count, numbers=6, mean=0.0, deviation=1.0):
    """Vectors (count, numbers) drawn from a Gaussian."""
    return mean + deviation * np.random.default_rng(seed).standard_normal((count, numbers))


def batch(*images):
    """Images (H, W, 3) as a uint8 tensor (N, 3, H, W)."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
