"""The autoencoder with a codebook of latent diffusion: diffusers' `VQModel`, by names, shapes and function.

van den Oord et al., "Neural discrete representation learning", NeurIPS 2017; Esser et al., "Taming transformers for
high-resolution image synthesis", CVPR 2021; Rombach et al., CVPR 2022.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from aecli.models.base import Autoencoder, Encoded
from aecli.models.codes import STAT_NAMES, batch_stats, nearest
from aecli.models.ldm_layers import Decoder, Encoder
from aecli.models.options import VQOptions

_VECTORS_A_CODE = 8  # of which a codebook begins as a random choice


class Quantizer(nn.Module):
    """Replaces vectors by the nearest ones of a codebook that gradients train."""

    def __init__(self, size: int, dim: int) -> None:
        """Build it with codes uniform within ±1/size."""
        super().__init__()
        self.embedding = nn.Embedding(size, dim)
        nn.init.uniform_(self.embedding.weight, -1 / size, 1 / size)

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes nearest to vectors (N, dim, h, w), in their place, and their indices (N, h, w)."""
        vectors = vectors.permute(0, 2, 3, 1)
        found = nearest(vectors.flatten(0, 2).unsqueeze(0), self.embedding.weight.unsqueeze(0))
        indices = found.view(vectors.shape[:3])
        codes: Tensor = self.embedding(indices)
        return codes.permute(0, 3, 1, 2), indices


class VQ(Autoencoder):
    """Residual blocks, attention at the coarsest resolution, and a codebook; gradients pass it straight through."""

    Options = VQOptions
    stat_names = STAT_NAMES
    decoder_modules = ("post_quant_conv", "decoder")

    def __init__(self, options: VQOptions) -> None:
        """Build it with PyTorch's initialisation, from torch's global generator."""
        super().__init__()
        self.options = options
        self.size_multiple = options.downsampling
        channels = options.latent_channels
        self.encoder = Encoder(options, channels)
        self.quant_conv = nn.Conv2d(channels, options.code_dim, 1)
        self.quantize = Quantizer(options.codebook_size, options.code_dim)
        self.post_quant_conv = nn.Conv2d(options.code_dim, channels, 1)
        self.decoder = Decoder(options)

    @torch.no_grad()
    def prepare(self, batches: Iterable[Tensor]) -> None:
        """Begin with vectors of images (N, 3, S, S) as codes: the built ones lie near 0, and few are used."""
        size, found = self.options.codebook_size, []
        for images in batches:
            found.append(self.quant_conv(self.encoder(images)).float().movedim(1, -1).flatten(0, 2))
            if sum(map(len, found)) >= _VECTORS_A_CODE * size:
                break
        vectors = torch.cat(found)
        repeats = -(-size // len(vectors))
        chosen = torch.cat([torch.randperm(len(vectors)) for _ in range(repeats)])[:size]
        self.quantize.embedding.weight.copy_(vectors[chosen.to(vectors.device)])

    @property
    def term_weights(self) -> Mapping[str, float]:
        """1 of `codebook`, which moves codes to vectors, and `commitment_weight` of `commitment`, the other way."""
        return {"codebook": 1.0, "commitment": self.options.commitment_weight}

    @property
    def bits_per_latent(self) -> float:
        """The bits of an index."""
        return math.log2(self.options.codebook_size)

    @property
    def codebook_size(self) -> int:
        """The codes of its one codebook."""
        return int(self.options.codebook_size)

    def indices(self, latents: Tensor) -> Tensor:
        """Return the codes (N, 1, h, w), int64, nearest to latents (N, vq_embed_dim, h, w)."""
        found: Tensor = self.quantize(latents)[1]
        return found.unsqueeze(1)

    @property
    def code_levels(self) -> tuple[int]:
        """The codes of its codebook: an index is one digit."""
        return (self.codebook_size,)

    def latents(self, indices: Tensor) -> Tensor:
        """Return the latents (N, vq_embed_dim, h, w) of codes (N, 1, h, w)."""
        codes: Tensor = self.quantize.embedding(indices.squeeze(1))
        return codes.permute(0, 3, 1, 2)

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Encoded:
        """Return latents (N, vq_embed_dim, H/f, W/f), which are codes, both terms, and the use of the codebook."""
        vectors = self.quant_conv(self.encoder(images)).float()
        codes, indices = self.quantize(vectors)
        terms = {
            "codebook": (codes - vectors.detach()).square().mean(),
            "commitment": (vectors - codes.detach()).square().mean(),
        }
        latents = vectors + (codes - vectors).detach() if self.training else codes
        return Encoded(latents, terms, batch_stats(indices, self.options.codebook_size))

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (N, 3, H, W); in `eval()` mode in [-1, 1], beyond which a loss still has a gradient."""
        images: Tensor = self.decoder(self.post_quant_conv(latents))
        return images if self.training else images.clamp(-1, 1)

    def latent_shape(self, image_size: int) -> tuple[int, ...]:
        """Return (vq_embed_dim, side, side)."""
        side = image_size // self.size_multiple
        return (self.options.code_dim, side, side)
