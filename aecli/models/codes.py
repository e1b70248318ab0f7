"""What quantisers share: codebooks over interleaved channels, and how often their codes are used."""

import torch
from torch import Tensor, nn

FREQUENCY_DECAY = 0.99  # a step: frequencies are those of about the last hundred steps
USED = 0.01  # of the frequency that a code would have if all were used evenly; from there on it counts as used
STAT_NAMES = ("codebook_usage", "perplexity")


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
        entropy = -torch.xlogy(shares, shares).sum(1)
        usage = (shares >= USED / shares.shape[1]).float().mean()
        return dict(zip(STAT_NAMES, (usage, entropy.exp().mean()), strict=True))


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
    counts = torch.bincount((codes + offsets).flatten(), minlength=len(codes) * size)
    return counts.view(len(codes), size).float()


def _shares(counts: Tensor) -> Tensor:
    return counts / counts.sum(1, keepdim=True).clamp(min=torch.finfo(counts.dtype).tiny)
