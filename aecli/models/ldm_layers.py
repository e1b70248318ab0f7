"""Encoder and decoder of latent diffusion, with the names and shapes that diffusers gives their parameters.

Rombach et al., "High-resolution image synthesis with latent diffusion models", CVPR 2022.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from aecli.models.options import LatentDiffusionOptions

_EPSILON = 1e-6  # of GroupNorm


class ResnetBlock(nn.Module):
    """GroupNorm → SiLU → 3×3, twice, added to the input (through a 1×1 convolution where the channels change)."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        """Build it."""
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels_in, _EPSILON)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels_out, _EPSILON)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else None

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, channels_in, h, w) to (N, channels_out, h, w)."""
        hidden = self.conv1(F.silu(self.norm1(features)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        made: Tensor = hidden + (features if self.conv_shortcut is None else self.conv_shortcut(features))
        return made


class Attention(nn.Module):
    """Self-attention of one head over all positions, added to the input."""

    def __init__(self, channels: int, groups: int) -> None:
        """Build it."""
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, _EPSILON)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape (N, channels, h, w)."""
        tokens = self.group_norm(features).flatten(2).transpose(1, 2).unsqueeze(1)  # (N, 1, h·w, channels)
        attended = F.scaled_dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        made: Tensor = self.to_out(attended).squeeze(1).unflatten(1, features.shape[2:]).permute(0, 3, 1, 2)
        return features + made


class MidBlock(nn.Module):
    """Two residual blocks at the coarsest resolution, with attention between them or without."""

    def __init__(self, channels: int, groups: int, attention: bool) -> None:
        """Build it."""
        super().__init__()
        self.attentions = nn.ModuleList([Attention(channels, groups)] if attention else [])
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups) for _ in range(2))

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape (N, channels, h, w)."""
        first, second = self.resnets
        features = first(features)
        for attention in self.attentions:
            features = attention(features)
        made: Tensor = second(features)
        return made


class Downsample(nn.Module):
    """Halve both sides: a 3×3 convolution of stride 2 over features with a row and a column of zeros after them."""

    def __init__(self, channels: int) -> None:
        """Build it."""
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 2)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, channels, h, w) to (N, channels, h/2, w/2)."""
        made: Tensor = self.conv(F.pad(features, (0, 1, 0, 1)))
        return made


class Upsample(nn.Module):
    """Double both sides: each position four times, then a 3×3 convolution."""

    def __init__(self, channels: int) -> None:
        """Build it."""
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, channels, h, w) to (N, channels, 2h, 2w)."""
        made: Tensor = self.conv(F.interpolate(features, scale_factor=2.0, mode="nearest"))
        return made


class DownBlock(nn.Module):
    """Residual blocks at one resolution of the encoder, then half of it."""

    def __init__(self, channels_in: int, channels_out: int, layers: int, groups: int, halves: bool) -> None:
        """Build it."""
        super().__init__()
        self.resnets = _resnets(channels_in, channels_out, layers, groups)
        self.downsamplers = nn.ModuleList([Downsample(channels_out)] if halves else [])

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, channels_in, h, w) to (N, channels_out, h/2, w/2), or of the same sides."""
        for layer in (*self.resnets, *self.downsamplers):
            features = layer(features)
        return features


class UpBlock(nn.Module):
    """Residual blocks at one resolution of the decoder, then twice of it."""

    def __init__(self, channels_in: int, channels_out: int, layers: int, groups: int, doubles: bool) -> None:
        """Build it."""
        super().__init__()
        self.resnets = _resnets(channels_in, channels_out, layers, groups)
        self.upsamplers = nn.ModuleList([Upsample(channels_out)] if doubles else [])

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, channels_in, h, w) to (N, channels_out, 2h, 2w), or of the same sides."""
        for layer in (*self.resnets, *self.upsamplers):
            features = layer(features)
        return features


class Encoder(nn.Module):
    """Images (N, 3, H, W) to features (N, channels_out, H/f, W/f), f = 2^(blocks - 1)."""

    def __init__(self, options: LatentDiffusionOptions, channels_out: int) -> None:
        """Build it."""
        super().__init__()
        widths, layers, groups = options.block_out_channels, options.layers_per_block, options.norm_num_groups
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(before, width, layers, groups, number < len(widths))
            for number, (before, width) in enumerate(pairwise((widths[0], *widths)), 1)
        )
        self.mid_block = MidBlock(widths[-1], groups, options.mid_block_add_attention)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], _EPSILON)
        self.conv_out = nn.Conv2d(widths[-1], channels_out, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features."""
        features = self.conv_in(images)
        for block in self.down_blocks:
            features = block(features)
        features = self.mid_block(features)
        made: Tensor = self.conv_out(F.silu(self.conv_norm_out(features)))
        return made


class Decoder(nn.Module):
    """Latents (N, latent_channels, H/f, W/f) to images (N, 3, H, W), which may go beyond [-1, 1]."""

    def __init__(self, options: LatentDiffusionOptions) -> None:
        """Build it."""
        super().__init__()
        widths, groups = options.block_out_channels[::-1], options.norm_num_groups
        layers = options.layers_per_block + 1
        self.conv_in = nn.Conv2d(options.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups, options.mid_block_add_attention)
        self.up_blocks = nn.ModuleList(
            UpBlock(before, width, layers, groups, number < len(widths))
            for number, (before, width) in enumerate(pairwise((widths[0], *widths)), 1)
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], _EPSILON)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Return the images."""
        features = self.mid_block(self.conv_in(latents))
        for block in self.up_blocks:
            features = block(features)
        images: Tensor = self.conv_out(F.silu(self.conv_norm_out(features)))
        return images


def _resnets(channels_in: int, channels_out: int, layers: int, groups: int) -> nn.ModuleList:
    widths = (channels_in, *[channels_out] * layers)
    return nn.ModuleList(ResnetBlock(before, width, groups) for before, width in pairwise(widths))
