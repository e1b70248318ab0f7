"""Vector quantisation (van den Oord et al., NeurIPS 2017), the codes being moving averages of what they stand for.

Dead codes are restarted (Dhariwal et al., 2020); cosine similarity as in improved VQGAN (Yu et al., ICLR 2022).
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from aecli.models.base import Encoded
from aecli.models.bottlenecks import Bottleneck
from aecli.models.codes import STAT_NAMES, CodeFrequencies, count_codes, join_channels, nearest, split_channels

DECAY = 0.99  # a step
SMOOTHING = 1e-5  # Laplace's, in vectors
DEAD = 0.1  # of the mean use of a code: below it a code is restarted
_ITERATIONS = 10  # of k-means
_MOST_VECTORS = 2**16  # that k-means sees


class EMACodebook(Bottleneck):
    """Codebooks of latent_dim/codebooks channels each; the gradient passes straight through.

    Distances are Euclidean, the channels weighted by what their errors cost in the image, or of directions alone
    (`cosine`). A code that is used by less than a tenth of the mean becomes a random vector of the batch.
    """

    stat_names = STAT_NAMES
    scale: Tensor
    codebook: Tensor
    sizes: Tensor
    totals: Tensor

    def __init__(self, latent_dim: int, size: int, codebooks: int, cosine: bool, commitment: float) -> None:
        """Build it, with random codes; `latent_dim` is a multiple of `codebooks`."""
        super().__init__(latent_dim, latent_dim)
        self.codebook_size: int = size
        self.code_levels = (size,)
        self.codebooks, self.cosine = codebooks, cosine
        self.bits = math.log2(size) * codebooks
        self.term_weights = {"commitment": commitment}
        self.frequencies = CodeFrequencies(codebooks, size)
        self.register_buffer("scale", torch.ones(latent_dim, 1, 1))
        self.register_buffer("codebook", self._directed(torch.randn(codebooks, size, latent_dim // codebooks)))
        self.register_buffer("sizes", torch.zeros(codebooks, size))  # moving averages of the vectors of each code
        self.register_buffer("totals", torch.zeros_like(self.codebook))  # and of their sums

    def forward(self, hidden: Tensor, noise: Tensor | None = None) -> Encoded:
        """Return the latents of the nearest codes, float32; `commitment`, the squared distance; and statistics."""
        hidden = hidden.float()
        vectors = self._directed(split_channels(hidden * self.scale, self.codebooks))
        codes = nearest(vectors.detach(), self.codebook)
        chosen = self._chosen(codes)
        latents = self._to_latents(chosen, hidden) + (hidden - hidden.detach())
        seen = {}
        if self.training:
            seen["vectors"] = join_channels(vectors.detach(), hidden)
            seen["codes"] = join_channels(codes.unsqueeze(-1), hidden[:, : self.codebooks])
        return Encoded(latents, {"commitment": F.mse_loss(vectors, chosen)}, self.frequencies.stats(), seen)

    def indices(self, latents: Tensor) -> Tensor:
        """Return the codes (N, codebooks, h, w), int64, that are nearest to latents (N, latent_dim, h, w)."""
        vectors = self._directed(split_channels(latents.float() * self.scale, self.codebooks))
        return join_channels(nearest(vectors, self.codebook).unsqueeze(-1), latents[:, : self.codebooks])

    def latents(self, indices: Tensor) -> Tensor:
        """Return the latents (N, latent_dim, h, w) of codes (N, codebooks, h, w)."""
        chosen = self._chosen(split_channels(indices, self.codebooks).squeeze(-1))
        count, _, height, width = indices.shape
        return self._to_latents(chosen, chosen.new_empty(count, self.latent_dim, height, width))

    def prepare(self, hidden: Iterable[Tensor], importance: Tensor | None = None) -> None:
        """Take the means of k-means over the vectors as codes, distances weighted by the channels' importance."""
        if importance is not None:
            self.scale.copy_((importance / importance.square().mean().sqrt()).view_as(self.scale))
        found: list[Tensor] = []
        for batch in hidden:
            found.append(self._directed(split_channels(batch.float() * self.scale, self.codebooks)))
        if not found:
            return
        vectors = torch.cat(found, 1)
        order = torch.randperm(vectors.shape[1])[:_MOST_VECTORS].to(vectors.device)
        means, counts = self._k_means(vectors[:, order])
        self.codebook.copy_(means)
        self.sizes.copy_(counts * (found[0].shape[1] / len(order)))  # of a batch, as the steps will count them
        self.totals.copy_(means * self.sizes.unsqueeze(-1))
        self.frequencies.start(counts)

    def step_sums(self, observed: Mapping[str, Tensor], first: int, count: int) -> list[Tensor]:
        """Return each code's use, the sums of its vectors, and a random vector of the batch to restart it with."""
        vectors = split_channels(observed["vectors"], self.codebooks)
        codes = split_channels(observed["codes"], self.codebooks).squeeze(-1)
        positions = math.prod(observed["codes"].shape[2:])
        drawn = torch.randint(count * positions, self.codebook.shape[:2]).to(codes.device) - first * positions
        is_here = (0 <= drawn) & (drawn < vectors.shape[1])
        places = drawn.clamp(0, vectors.shape[1] - 1).unsqueeze(-1).expand_as(self.codebook)
        restarts = vectors.gather(1, places) * is_here.unsqueeze(-1)
        return [count_codes(codes, self.codebook_size), self._sum(vectors, codes), restarts]

    def after_step(self, sums: Sequence[Tensor]) -> None:
        """Move the averages, and with them the codes, by a step; restart dead codes."""
        counts, totals, restarts = sums
        self.frequencies.update(counts)
        self.sizes.lerp_(counts, 1 - DECAY)
        self.totals.lerp_(totals, 1 - DECAY)
        total = self.sizes.sum(1, keepdim=True)
        smoothed = (self.sizes + SMOOTHING) / (total + self.codebook_size * SMOOTHING) * total
        codebook = self._directed(self.totals / smoothed.unsqueeze(-1))
        mean = total / self.codebook_size
        is_dead = self.sizes < DEAD * mean
        self.sizes.copy_(torch.where(is_dead, mean, self.sizes))
        self.totals.copy_(torch.where(is_dead.unsqueeze(-1), restarts * mean.unsqueeze(-1), self.totals))
        self.codebook.copy_(torch.where(is_dead.unsqueeze(-1), restarts, codebook))

    def _directed(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self.cosine else vectors

    def _chosen(self, codes: Tensor) -> Tensor:
        return self.codebook.gather(1, codes.unsqueeze(-1).expand(-1, -1, self.codebook.shape[-1]))

    def _to_latents(self, chosen: Tensor, like: Tensor) -> Tensor:
        """Return the latents of chosen codes; directions have the length of vectors of unit variance."""
        length = math.sqrt(self.codebook.shape[-1]) if self.cosine else 1.0
        return join_channels(chosen * length, like) / self.scale

    def _sum(self, vectors: Tensor, codes: Tensor) -> Tensor:
        """Return the sums (codebooks, size, d) of the vectors (codebooks, n, d) of each code."""
        offsets = self.codebook_size * torch.arange(self.codebooks, device=codes.device).unsqueeze(1)
        sums = torch.zeros_like(self.codebook).flatten(0, 1)
        return sums.index_add_(0, (codes + offsets).flatten(), vectors.flatten(0, 1)).view_as(self.codebook)

    def _k_means(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means of vectors (codebooks, n, d) in random order, and how many each has."""
        first = torch.arange(self.codebook_size, device=vectors.device) % vectors.shape[1]
        means = vectors[:, first]
        for _ in range(_ITERATIONS):
            codes = nearest(vectors, means)
            counts = count_codes(codes, self.codebook_size).unsqueeze(-1)
            means = torch.where(counts > 0, self._directed(self._sum(vectors, codes) / counts.clamp(min=1)), means)
        return means, count_codes(nearest(vectors, means), self.codebook_size)
