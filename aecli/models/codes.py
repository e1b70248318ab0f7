"""What quantisers share: the nearest codes, codebooks over interleaved channels, and how often codes are used."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

FREQUENCY_DECAY = 0.99  # a step: frequencies are those of about the last hundred steps
USED = 0.01  # of the frequency that a code would have if all were used evenly; from there on it counts as used
STAT_NAMES = ("codebook_usage", "perplexity")
_MOST_DISTANCES = 2**24  # computed at once


class CodeFrequencies(nn.Module):
    """Moving averages of the frequencies of the codes of several codebooks, (codebooks, codes)."""

    average: Tensor

    def __init__(self, codebooks: int, codes: int) -> None:
        """Start with nothing seen."""
        super().__init__()
        self.register_buffer("average", torch.zeros(codebooks, codes))

    def start(self, counts: Tensor) -> None:
        """Begin from these counts (codebooks, codes)."""
        self.average.copy_(_shares(counts))

    def update(self, counts: Tensor) -> None:
        """Move towards the counts (codebooks, codes) of a step."""
        self.average.lerp_(_shares(counts), 1 - FREQUENCY_DECAY)

    def stats(self) -> dict[str, Tensor]:
        """Return `codebook_usage` and `perplexity`, means over the codebooks.

        Usage is the fraction of codes whose frequency is at least a hundredth of that of even use. Perplexity is the
        exponential of the frequencies' entropy: as many codes used evenly would have it.
        """
        shares = _shares(self.average)
        return _stats(shares, shares >= USED / shares.shape[1])


def split_channels(values: Tensor, codebooks: int) -> Tensor:
    """Return values (N, C, h, w) as vectors (codebooks, N·h·w, C/codebooks).

    Codebook g has the channels g, g + codebooks, …: of channels in the order of their variances, each has some of the
    large ones.
    """
    count, channels, height, width = values.shape
    parts = values.reshape(count, channels // codebooks, codebooks, height, width)
    return parts.permute(2, 0, 3, 4, 1).flatten(1, 3)


def join_channels(vectors: Tensor, like: Tensor) -> Tensor:
    """Return vectors (codebooks, N·h·w, C/codebooks) in the shape of `like` (N, C, h, w)."""
    count, _, height, width = like.shape
    parts = vectors.reshape(len(vectors), count, height, width, -1)
    return parts.permute(1, 4, 0, 2, 3).flatten(1, 2)


def count_codes(codes: Tensor, size: int) -> Tensor:
    """Return how often each of `size` codes is among codes (codebooks, n), float32 (codebooks, size)."""
    offsets = size * torch.arange(len(codes), device=codes.device).unsqueeze(1)
    places = (codes + offsets).flatten()
    ones = torch.ones(places.shape, device=codes.device)
    return ones.new_zeros(len(codes) * size).index_add_(0, places, ones).view(len(codes), size)


def batch_stats(codes: Tensor, size: int) -> dict[str, Tensor]:
    """Return `codebook_usage` and `perplexity` of the codes of one batch alone: a code counts as used from one on."""
    return count_stats(count_codes(codes.reshape(1, -1), size))


def count_stats(counts: Tensor) -> dict[str, Tensor]:
    """Return `codebook_usage` and `perplexity` of how often each code occurs, (codebooks, size), in its precision."""
    shares = _shares(counts)
    return _stats(shares, shares > 0)


@torch.no_grad()
def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Return the codes (codebooks, n) of `codebook` (codebooks, size, d) nearest to vectors (codebooks, n, d).

    Distances are Euclidean, in float32 even under autocast.
    """
    squares = codebook.square().sum(-1).unsqueeze(1)
    rows = max(1, _MOST_DISTANCES // (codebook.shape[0] * codebook.shape[1]))
    # A program has one number of parts for images of all sizes: what was traced with a small one would drop the others.
    parts = (vectors,) if torch.compiler.is_exporting() else torch.split(vectors, rows, 1)
    with nullcontext() if vectors.is_meta else torch.autocast(vectors.device.type, enabled=False):
        found = [(squares - 2 * part @ codebook.mT).argmin(-1) for part in parts]
    return torch.cat(found, 1)


def _shares(counts: Tensor) -> Tensor:
    return counts / counts.sum(1, keepdim=True).clamp(min=torch.finfo(counts.dtype).tiny)


def _stats(shares: Tensor, is_used: Tensor) -> dict[str, Tensor]:
    """Means over the codebooks of the share of codes in use, and of perplexity exp(-Σ p·log p) of the shares p."""
    entropy = -torch.xlogy(shares, shares).sum(1)
    return dict(zip(STAT_NAMES, (is_used.to(shares.dtype).mean(), entropy.exp().mean()), strict=True))
