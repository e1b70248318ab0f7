"""A residual autoencoder that begins as the PCA of patches: a linear path beside every convolution.

Residual blocks: He et al., CVPR 2016. A linear path between pixels and latent: DC-AE (Chen et al., ICLR 2025), here
with the values of a PCA in place of averages.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aecli.errors import ConfigError
from aecli.models.base import Autoencoder, Encoded, Prediction
from aecli.models.bottlenecks import Bottleneck, Gaussian, Identity
from aecli.models.ema_vq import EMACodebook
from aecli.models.fsq import FSQ
from aecli.models.options import ResNetOptions
from aecli.models.patches import PatchDecoder, PatchEncoder, fit_patches

_STEM = 4  # side of the patches that the first convolution sees, in pixels
_PREPARED = 1024  # images that a bottleneck is fitted to, at most
_EQUIVARIANCE = "equivariance"

Stage = tuple[int, int, int]  # downsampling, channels, blocks


class RMSNorm(nn.Module):
    """Divides each position by the root mean square of its channels (Zhang and Sennrich, NeurIPS 2019).

    What it makes of a position depends on no other one, so that a picture can be computed in tiles.
    """

    def __init__(self, channels: int) -> None:
        """Build it."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Normalise features (N, channels, h, w)."""
        return features * torch.rsqrt(features.square().mean(1, keepdim=True) + 1e-6) * self.weight


class Block(nn.Module):
    """norm → SiLU → 3×3 → SiLU → 3×3, added to its input; the last kernel begins at zero."""

    def __init__(self, channels: int) -> None:
        """Build it."""
        super().__init__()
        self.norm = RMSNorm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = _zeroed(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape (N, channels, h, w)."""
        residual: Tensor = self.conv2(F.silu(self.conv1(F.silu(self.norm(features)))))
        return features + residual


class Encoder(nn.Module):
    """Images (N, 3, H, W) to (N, out_channels, H/f, W/f), of which the linear path is in the first `latent_dim`."""

    def __init__(self, stages: Sequence[Stage], latent_dim: int, out_channels: int) -> None:
        """Build it; `stages` go from fine to coarse."""
        super().__init__()
        self.linear = PatchEncoder(stages[-1][0], latent_dim)
        self.residual = nn.Sequential(*_encoder_layers(stages, out_channels))

    def forward(self, images: Tensor) -> Tensor:
        """Return what the bottleneck takes."""
        linear, residual = self.linear(images), self.residual(images)
        made: Tensor = residual + F.pad(linear, (0, 0, 0, 0, 0, residual.shape[1] - linear.shape[1]))
        return made


class Decoder(nn.Module):
    """Latents (N, latent_dim, H/f, W/f) to images (N, 3, H, W)."""

    def __init__(self, stages: Sequence[Stage], latent_dim: int) -> None:
        """Build it; `stages` go from coarse to fine."""
        super().__init__()
        self.linear = PatchDecoder(stages[0][0], latent_dim)
        self.residual = nn.Sequential(*_decoder_layers(stages, latent_dim))

    def forward(self, latents: Tensor) -> Tensor:
        """Return images, which may go beyond [-1, 1]."""
        linear, residual = self.linear(latents), self.residual(latents)
        images: Tensor = linear + residual
        return images


class ResNet(Autoencoder):
    """Fully convolutional, with a bottleneck between encoder and decoder."""

    Options = ResNetOptions

    def __init__(self, options: ResNetOptions) -> None:
        """Build it; `prepare` sets the linear path."""
        super().__init__()
        self.options = options
        self.size_multiple = options.downsampling
        self.bottleneck = build_bottleneck(options)
        self.stat_names = self.bottleneck.stat_names
        self.encoder = Encoder(encoder_stages(options), options.latent_dim, self.bottleneck.in_channels)
        self.decoder = Decoder(decoder_stages(options), options.latent_dim)
        # The linear path stays the PCA: trained with the rest it gains nothing, and can lose what it began with.
        for linear in (self.encoder.linear, self.decoder.linear):
            linear.requires_grad_(False)

    @property
    def term_weights(self) -> Mapping[str, float]:
        """Those of the bottleneck, and of scale equivariance if it is asked for."""
        weight = self.options.scale_equivariance
        return {**self.bottleneck.term_weights, **({_EQUIVARIANCE: weight} if weight else {})}

    @property
    def bits_per_latent(self) -> float | None:
        """Those of the bottleneck."""
        return self.bottleneck.bits

    @property
    def codebook_size(self) -> int | None:
        """That of the bottleneck."""
        return self.bottleneck.codebook_size

    def indices(self, latents: Tensor) -> Tensor | None:
        """Return the codes (N, codebooks, h, w), int64, of latents (N, latent_dim, h, w), if the bottleneck has any."""
        return self.bottleneck.indices(latents)

    @property
    def code_levels(self) -> tuple[int, ...] | None:
        """Those of the bottleneck."""
        return self.bottleneck.code_levels

    def latents(self, indices: Tensor) -> Tensor:
        """Return the latents (N, latent_dim, h, w) of codes (N, codebooks, h, w), if the bottleneck has any."""
        return self.bottleneck.latents(indices)

    def prepare(self, batches: Iterable[Tensor]) -> None:
        """Set the linear path to the PCA of images (N, 3, S, S) in [-1, 1], and fit the bottleneck."""
        kept: list[Tensor] = []
        fit_patches(self.encoder.linear, self.decoder.linear, _kept(batches, kept))
        with torch.no_grad():
            importance = self.decoder.linear.expand.weight.flatten(1).norm(dim=0)
            self.bottleneck.prepare((self.encoder(images) for images in kept), importance)

    def step_sums(self, observed: Mapping[str, Tensor], first: int, count: int) -> list[Tensor]:
        """Return those of the bottleneck; none while it is frozen."""
        return self.bottleneck.step_sums(observed, first, count) if self.bottleneck.training else []

    def after_step(self, sums: Sequence[Tensor]) -> None:
        """Update the bottleneck's averages."""
        if sums:
            self.bottleneck.after_step(sums)

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Encoded:
        """Return latents (N, latent_dim, H/f, W/f) of images (N, 3, H, W) in [-1, 1], and what the bottleneck says."""
        encoded: Encoded = self.bottleneck(self.encoder(images), noise)
        return encoded

    def encode_distribution(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the latents and, of a Gaussian posterior, its log variances."""
        return self.bottleneck.distribution(self.encoder(images))

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (N, 3, H, W); in `eval()` mode in [-1, 1], beyond which a loss still has a gradient."""
        images: Tensor = self.decoder(latents)
        return images if self.training else images.clamp(-1, 1)

    def draw_noise(self, count: int, image_size: int) -> Tensor | None:
        """Return noise from torch's global generator: a Gaussian posterior's, or None.

        With `latent_noise` there are, in further channels, that of the latent and one for its level.
        """
        shape, device = (count, *self.latent_shape(image_size)), next(self.parameters()).device
        noise = self.bottleneck.draw_noise(shape, device)
        if not self.options.latent_noise:
            return noise
        added = torch.randn(count, 1 + shape[1], *shape[2:], device=device)
        return added if noise is None else torch.cat([noise, added], dim=1)

    def predict(self, examples: Tensor, noise: Tensor | None = None) -> Prediction:
        """Return reconstructions of images (N, 3, H, W) beside the images; in training, of latents with noise.

        Noisy latents make the decoder one for what a prior draws, as in Zheng et al., "Diffusion transformers with
        representation autoencoders", 2025. The level is uniform, and goes by the latent's own scale, so that an encoder
        can't evade it by larger latents.

        Raises:
            ConfigError: with `scale_equivariance`, the latents have a side of one position.
        """
        added = None
        if self.training and self.options.latent_noise:
            if noise is None:
                noise = self.draw_noise(len(examples), examples.shape[-1])
                assert noise is not None  # for the type checker: there is latent noise
            channels = 1 + self.options.latent_dim
            noise, added = noise[:, :-channels], noise[:, -channels:]
        encoded = self.encode(examples, noise if noise is not None and noise.shape[1] else None)
        latent, terms = encoded.latent, dict(encoded.terms)
        if added is not None:
            scale = latent.detach().square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
            uniform = torch.special.ndtr(added[:, -1:, :1, :1])
            latent = latent + self.options.latent_noise * uniform * scale * added[:, :-1]
        if self.options.scale_equivariance:
            terms[_EQUIVARIANCE] = self._equivariance_loss(encoded.latent, examples)
        return Prediction(self.decode(latent), examples, terms, encoded.stats, encoded.observed)

    def _equivariance_loss(self, latents: Tensor, images: Tensor) -> Tensor:
        """Return how far what is decoded of halved latents is from halved images, as a mean of squares.

        Scale equivariance: Kouzelis et al., "EQ-VAE", ICML 2025; with one scale as in Skorokhodov et al., "Improving
        the diffusability of autoencoders", ICML 2025.
        """
        if min(latents.shape[2:]) < 2:
            sides = "x".join(map(str, latents.shape[2:]))
            raise ConfigError(f"--option scale_equivariance: can't halve latents of {sides}\nhint: larger images")
        decoded = self.decode(F.avg_pool2d(latents, 2))
        height, width = (2 * side for side in decoded.shape[2:])
        return F.mse_loss(decoded.float(), F.avg_pool2d(images[:, :, :height, :width], 2).float())

    def latent_shape(self, image_size: int) -> tuple[int, ...]:
        """Return (latent_dim, side, side)."""
        side = image_size // self.size_multiple
        return (self.options.latent_dim, side, side)


def build_bottleneck(options: ResNetOptions) -> Bottleneck:
    """Return the bottleneck that the options name."""
    if options.bottleneck == "kl":
        return Gaussian(options.latent_dim, options.beta)
    if options.bottleneck == "fsq":
        return FSQ(options.latent_dim, options.levels)
    if options.bottleneck == "vq":
        return EMACodebook(
            options.latent_dim, options.codebook_size, options.codebooks, options.distance == "cosine",
            options.commitment,
        )  # fmt: skip
    return Identity(options.latent_dim)


def encoder_stages(options: ResNetOptions) -> list[Stage]:
    """Return the stages of the encoder from fine to coarse: half as wide as the decoder, a block each."""
    return [(scale, max(1, channels // 2), 1) for scale, channels, _ in reversed(decoder_stages(options))]


def decoder_stages(options: ResNetOptions) -> list[Stage]:
    """Return the stages of the decoder from coarse to fine; all but the finest are twice as wide.

    Wider ones lost what the PCA had at the rate that suits these.
    """
    finest = min(_STEM, options.downsampling // 2)
    scales = [finest]
    while scales[-1] < options.downsampling:
        scales.append(2 * scales[-1])
    return [
        (scale, options.width * min(2, scale // finest), options.depth) for scale in reversed(scales)
    ]  # fmt: skip


def _encoder_layers(stages: Sequence[Stage], out_channels: int) -> Iterator[nn.Module]:
    scale, channels = 1, 3
    for number, (coarser, width, blocks) in enumerate(stages):
        side = 3 if number == 0 else 1
        factor = coarser // scale
        yield nn.PixelUnshuffle(factor)
        yield nn.Conv2d(channels * factor**2, width, side, padding=side // 2)
        yield from (Block(width) for _ in range(blocks))
        scale, channels = coarser, width
    # Without a norm of its own the end falls silent at high rates or strong losses, and what is left is the PCA.
    yield RMSNorm(channels)
    yield nn.SiLU()
    yield _zeroed(nn.Conv2d(channels, out_channels, 3, padding=1))


def _decoder_layers(stages: Sequence[Stage], latent_dim: int) -> Iterator[nn.Module]:
    (scale, channels, _), (finest, last, _) = stages[0], stages[-1]
    yield nn.Conv2d(latent_dim, channels, 3, padding=1)
    for finer, width, blocks in stages:
        if finer < scale:
            factor = scale // finer
            yield nn.Conv2d(channels, width * factor**2, 1)
            yield nn.PixelShuffle(factor)
        yield from (Block(width) for _ in range(blocks))
        scale, channels = finer, width
    yield RMSNorm(last)
    yield nn.SiLU()
    yield _zeroed(nn.Conv2d(last, 3 * finest**2, 3, padding=1))
    yield nn.PixelShuffle(finest)


def _zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _kept(batches: Iterable[Tensor], kept: list[Tensor]) -> Iterator[Tensor]:
    """Yield the batches, and add the first ones to `kept`."""
    count = 0
    for images in batches:
        if count < _PREPARED:
            kept.append(images)
            count += len(images)
        yield images
