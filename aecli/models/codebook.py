"""Codebooks: the nearest code, and how much of a codebook a batch uses."""

from contextlib import nullcontext

import torch
from torch import Tensor

STAT_NAMES = ("codebook_usage", "perplexity")
_MOST_DISTANCES = 2**26  # at once, 256 MB


def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Return for each of vectors (M, dim) the index of the code (K, dim) at the least Euclidean distance, int64 (M)."""
    full_precision = nullcontext() if vectors.is_meta else torch.autocast(vectors.device.type, enabled=False)
    with full_precision:
        norms, doubled = codebook.square().sum(1), 2 * codebook.T
        parts = torch.split(vectors, max(1, _MOST_DISTANCES // len(codebook)))
        return torch.cat([torch.addmm(norms, part, doubled, alpha=-1).argmin(1) for part in parts])


def codebook_stats(indices: Tensor, size: int) -> dict[str, Tensor]:
    """Return for a batch's indices the share of the codes in use, and perplexity exp(-Σ p·log p) of their shares p."""
    indices = indices.flatten()
    ones = torch.ones(indices.shape, device=indices.device)
    shares = torch.zeros(size, device=indices.device).index_add_(0, indices, ones) / len(indices)
    entropy = -(shares * shares.clamp(min=1e-12).log()).sum()
    return dict(zip(STAT_NAMES, ((shares > 0).float().mean(), entropy.exp()), strict=True))
