"""Autoencoders whose networks are diffusers' own modules: for trained weights, not in the registry.

diffusers is imported when one is built. What a config names is looked up in diffusers; no code is fetched.
"""

import inspect
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aecli.errors import ModelError, name_examples
from aecli.models.base import Autoencoder, Encoded
from aecli.models.diffusers_config import DiffusersConfig
from aecli.models.posterior import GaussianAutoencoder, Posterior

EXTRA = "pip install 'aecli[diffusers]'"


@dataclass(frozen=True)
class ExternalOptions:
    """diffusers' class and its config."""

    config: DiffusersConfig


class External(Autoencoder):
    """The parts of diffusers' module, by its names, with images in [-1, 1] and the latents that it works with."""

    Options = ExternalOptions
    encoder: nn.Module
    decoder: nn.Module

    def __init__(self, options: ExternalOptions) -> None:
        """Build the module of a config.

        Raises:
            ModelError: diffusers is missing, or its class has no such options.
        """
        super().__init__()
        self.options = options
        network = _network(options.config)
        for name, part in network.named_children():
            self.add_module(name, part)
        self.latent_channels: int = network.config.get("vq_embed_dim") or network.config["latent_channels"]
        self.size_multiple = options.config.downsampling

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Encoded:
        """Return latents (N, latent_channels, H/f, W/f), neither shifted nor scaled."""
        return Encoded(self.encoder(images))

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (N, 3, H, W) in [-1, 1]."""
        images: Tensor = self.decoder(latents)
        return images.clamp(-1, 1)

    def latent_shape(self, image_size: int) -> tuple[int, ...]:
        """Return (latent_channels, side, side)."""
        side = image_size // self.size_multiple
        return (self.latent_channels, side, side)


class AutoencoderTiny(External):
    """TAESD and its kin (Bohan, 2023). Its layers work on pixels in [0, 1]; diffusers' module maps them."""


class AutoencoderDC(External):
    """Chen et al., "Deep compression autoencoder for efficient high-resolution diffusion models", ICLR 2025."""


class AutoencoderKL(External, GaussianAutoencoder):
    """Configs of AutoencoderKL that `kl` doesn't have, such as attention at several resolutions."""

    term_weights = {"kl": 0.0}  # it is not trained here
    quant_conv: nn.Module
    post_quant_conv: nn.Module

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Encoded:
        """Return the mean of the posterior of images (N, 3, H, W), and `kl`."""
        return GaussianAutoencoder.encode(self, images, noise)

    def posterior(self, images: Tensor) -> Posterior:
        """Return the posterior of images (N, 3, H, W) in [-1, 1]."""
        moments: Tensor = self.encoder(images)
        if self.options.config.values.get("use_quant_conv", True):
            moments = self.quant_conv(moments)
        return Posterior.bounded(*moments.float().chunk(2, dim=1))

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (N, 3, H, W) in [-1, 1]."""
        if self.options.config.values.get("use_post_quant_conv", True):
            latents = self.post_quant_conv(latents)
        return super().decode(latents)


class VQModel(External):
    """Configs of VQModel that `vq` doesn't have, such as MoVQ's norms, which look at the codes."""

    quant_conv: nn.Module
    post_quant_conv: nn.Module
    quantize: nn.Module

    @property
    def bits_per_latent(self) -> float:
        """The bits of an index."""
        return math.log2(self.codebook_size)

    @property
    def codebook_size(self) -> int:
        """The codes of its one codebook."""
        return int(self.options.config.values.get("num_vq_embeddings", 256))

    def indices(self, latents: Tensor) -> Tensor:
        """Return the codes (N, 1, h, w), int64, nearest to latents (N, vq_embed_dim, h, w)."""
        found: Tensor = self.quantize(latents)[2][2]
        return found.view(len(latents), 1, *latents.shape[2:])

    @property
    def code_levels(self) -> tuple[int]:
        """The codes of its codebook: an index is one digit."""
        return (self.codebook_size,)

    def latents(self, indices: Tensor) -> Tensor:
        """Return the latents (N, vq_embed_dim, h, w) of codes (N, 1, h, w)."""
        count, _, height, width = indices.shape
        codes: Tensor = self.quantize.embedding(indices.flatten())  # type: ignore[operator]
        return codes.view(count, height, width, -1).permute(0, 3, 1, 2)

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Encoded:
        """Return latents (N, vq_embed_dim, H/f, W/f), which are codes."""
        return Encoded(self.quantize(self.quant_conv(self.encoder(images)))[0])

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (N, 3, H, W) in [-1, 1]."""
        looked_at = latents if self.options.config.values.get("norm_type") == "spatial" else None
        images: Tensor = self.decoder(self.post_quant_conv(latents), looked_at)
        return images.clamp(-1, 1)


_CLASSES: dict[str, type[External]] = {
    each.__name__: each for each in (AutoencoderKL, VQModel, AutoencoderTiny, AutoencoderDC)
}


def build_on_meta(config: DiffusersConfig) -> External:
    """Build the network of a config without memory for its weights.

    Raises:
        ModelError: diffusers is missing, or its class has no such options.
    """
    with torch.device("meta"):
        return _CLASSES[config.class_name](ExternalOptions(config))


def _network(config: DiffusersConfig) -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise ModelError(
            f"{config.class_name} with this config is computed by diffusers, which can't be imported: {error}\n"
            f"hint: {EXTRA}"
        ) from error
    kind = getattr(diffusers, config.class_name)
    known = inspect.signature(kind.__init__).parameters
    if unknown := sorted(config.values.keys() - known.keys()):
        raise ModelError(
            f"diffusers {diffusers.__version__} has no {config.class_name} with "
            f"{name_examples(unknown, len(unknown))}\nhint: pip install -U diffusers"
        )
    return kind(**config.values)
