"""Finite scalar quantisation (Mentzer et al., ICLR 2024): each channel is rounded to one of a few levels."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from aecli.models.base import Encoded
from aecli.models.bottlenecks import Bottleneck
from aecli.models.codes import STAT_NAMES, CodeFrequencies, count_codes, split_channels

_MARGIN = 1e-3  # by which the bound goes beyond the outermost levels


class FSQ(Bottleneck):
    """Codebooks of len(levels) channels each, which have prod(levels) codes; the gradient passes straight through.

    Channels are interleaved: the first latent_dim/len(levels) ones have `levels[0]` levels, and so on. A level stands
    for a value of the latent, by `prepare` for the mean of what is rounded to it, else for one in [-1, 1].
    """

    stat_names = STAT_NAMES
    values: Tensor
    slope: Tensor

    def __init__(self, latent_dim: int, levels: Sequence[int]) -> None:
        """Build it; `latent_dim` is a multiple of len(levels)."""
        super().__init__(latent_dim, latent_dim)
        self.levels, self.codebooks = tuple(levels), latent_dim // len(levels)
        self.code_levels = self.levels
        self.codebook_size: int = math.prod(levels)
        self.bits = math.log2(self.codebook_size) * self.codebooks
        self.frequencies = CodeFrequencies(self.codebooks, self.codebook_size)
        counts = self._levels()
        middle = counts.flatten(1) // 2
        self.register_buffer("values", (torch.arange(max(levels)) - middle) / middle)  # (latent_dim, levels at most)
        self.register_buffer("slope", 1 / middle.view(-1, 1, 1))  # of the straight line that gradients see

    def forward(self, hidden: Tensor, noise: Tensor | None = None) -> Encoded:
        """Return the latents that the levels of `hidden` stand for, float32, and statistics."""
        bounded = self._bounded(hidden.float())
        levels = self._levels_of(bounded.detach())
        line = self.slope * bounded
        latents = self._values_of(levels) + (line - line.detach())
        seen = {"codes": self._indices_of(levels)} if self.training else {}
        return Encoded(latents, {}, self.frequencies.stats(), seen)

    def indices(self, latents: Tensor) -> Tensor:
        """Return the codes (N, codebooks, h, w), int64, whose latents (N, latent_dim, h, w) are nearest."""
        beyond = torch.arange(self.values.shape[1], device=latents.device) >= self._levels(latents.device).flatten(1)
        values = self.values.masked_fill(beyond, math.inf)
        distances = (latents.movedim(1, -1).unsqueeze(-1) - values).abs()
        return self._indices_of(distances.argmin(-1).movedim(-1, 1))

    def latents(self, indices: Tensor) -> Tensor:
        """Return the latents (N, latent_dim, h, w) of codes (N, codebooks, h, w)."""
        counts, basis = self._levels(indices.device), self._basis(indices.device)
        return self._values_of(indices.repeat(1, len(self.levels), 1, 1) // basis % counts)

    def prepare(self, hidden: Iterable[Tensor], importance: Tensor | None = None) -> None:
        """Let each level stand for the mean of what is rounded to it, and count the codes."""
        places = self.values.numel()
        counts, sums = self.values.new_zeros(places), self.values.new_zeros(places)
        used = torch.zeros_like(self.frequencies.average)
        for batch in hidden:
            levels = self._levels_of(self._bounded(batch.float()))
            place = levels + self._channels(levels.device) * self.values.shape[1]
            values = batch.float().flatten()
            counts.index_add_(0, place.flatten(), torch.ones_like(values))
            sums.index_add_(0, place.flatten(), values)
            used += self._count(self._indices_of(levels))
        if not counts.any():
            return
        self._fit(counts.view_as(self.values), sums.view_as(self.values))
        self.frequencies.start(used)

    def step_sums(self, observed: Mapping[str, Tensor], first: int, count: int) -> list[Tensor]:
        """Return how often each code is used."""
        return [self._count(observed["codes"])]

    def after_step(self, sums: Sequence[Tensor]) -> None:
        """Update the frequencies of codes."""
        self.frequencies.update(sums[0])

    def _fit(self, counts: Tensor, sums: Tensor) -> None:
        """Set values to means, and those of unused levels to the line through the others, by least squares."""
        middle = self._levels(counts.device).flatten(1) // 2
        codes = torch.arange(counts.shape[1], device=counts.device) - middle
        total = counts.sum(1, keepdim=True)
        mean_code, mean = (each.sum(1, keepdim=True) / total for each in (counts * codes, sums))
        covariance = (codes * sums).sum(1, keepdim=True) / total - mean_code * mean
        variance = (counts * codes.square()).sum(1, keepdim=True) / total - mean_code.square()
        slope = torch.where(variance > 0, covariance / variance, 1 / middle)
        self.values.copy_(torch.where(counts > 0, sums / counts, mean + slope * (codes - mean_code)))
        self.slope.copy_(slope.unsqueeze(-1))

    def _bounded(self, hidden: Tensor) -> Tensor:
        """Return the paper's bound of hidden (N, latent_dim, h, w): rounded, it has as many values as levels."""
        levels = self._levels(hidden.device)
        half = (levels - 1) * (1 + _MARGIN) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        return torch.tanh(hidden + torch.atanh(offset / half)) * half - offset

    def _levels_of(self, bounded: Tensor) -> Tensor:
        counts = self._levels(bounded.device)
        return (bounded.round().long() + counts // 2).clamp(min=0).minimum(counts - 1)  # of what is no number too

    def _values_of(self, levels: Tensor) -> Tensor:
        return self.values[self._channels(levels.device), levels]

    def _indices_of(self, levels: Tensor) -> Tensor:
        weighted = levels * self._basis(levels.device)
        count, _, height, width = weighted.shape
        return weighted.view(count, len(self.levels), self.codebooks, height, width).sum(1)

    def _count(self, indices: Tensor) -> Tensor:
        return count_codes(split_channels(indices, self.codebooks).squeeze(-1), self.codebook_size)

    def _levels(self, device: torch.device | None = None) -> Tensor:
        """The number of levels of each channel, (latent_dim, 1, 1)."""
        return self._by_channel(self.levels, device)

    def _basis(self, device: torch.device) -> Tensor:
        """What a level of each channel counts in the index of a code: mixed radix, the first digit lowest."""
        return self._by_channel([math.prod(self.levels[:digit]) for digit in range(len(self.levels))], device)

    def _by_channel(self, digits: Sequence[int], device: torch.device | None) -> Tensor:
        repeated = [digit for digit in digits for _ in range(self.codebooks)]
        return torch.tensor(repeated, device=device).view(-1, 1, 1)

    def _channels(self, device: torch.device) -> Tensor:
        return torch.arange(self.latent_dim, device=device).view(-1, 1, 1)
