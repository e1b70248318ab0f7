"""The options of the built-in models; the defaults are the report's. No torch here: `--help` imports this."""

import math
from dataclasses import dataclass

from aecli.configs.checks import BASES, BOTTLENECKS, DISTANCES, WHITENINGS, require
from aecli.configs.options import MODEL, ModelOptions, option

_MOST_CODES = 65536  # of a codebook
_MOST_TOKENS = 16  # of a flow, by default
_MOST_GAUSSIAN = 2048  # numbers, whose covariance and its eigenvectors take 17 MB and seconds


@dataclass(frozen=True)
class AutoencoderOptions(ModelOptions):
    """Those of AE and VAE."""

    width: int = option(64, "Channels of the first block; the others have 2, 4, 8 and 16 times as many.", MODEL,
                        least=1, most=4096)  # fmt: skip
    latent_dim: int | None = option(None, "Latent channels.", MODEL, shown_default="16 x width", least=1, most=65536)

    @property
    def latent_channels(self) -> int:
        """`latent_dim`, or its default."""
        return self.latent_dim or 16 * self.width


@dataclass(frozen=True)
class VAEOptions(AutoencoderOptions):
    """Those of the VAE."""

    beta: float = option(
        2.5e-5, "Weight of the VAE's KL term. The report's listing runs 2.5e-5; its hyperparameter table says 2.5e-4.",
        MODEL, least=0,
    )  # fmt: skip


@dataclass(frozen=True)
class PatchOptions(ModelOptions):
    """Those of models whose latent has a position for each patch of the image."""

    downsampling: int = option(8, "Side of the patch that a position of the latent stands for, in pixels.", MODEL,
                               least=2, most=64)  # fmt: skip
    latent_dim: int = option(16, "Latent channels.", MODEL, least=1, most=65536)

    def _check_together(self) -> None:
        numbers = 3 * self.downsampling**2
        require(self.latent_dim <= numbers, "--latent-dim", self.latent_dim, f"at most the {numbers} of a patch")


@dataclass(frozen=True)
class ResNetOptions(PatchOptions):
    """Those of the residual autoencoder and of its bottlenecks."""

    width: int = option(64, "Channels of the finest stage of the decoder; the others have twice as many.", MODEL,
                        least=1, most=4096)  # fmt: skip
    depth: int = option(2, "Residual blocks of each stage of the decoder; the encoder has one.", MODEL, least=0,
                        most=64)  # fmt: skip
    bottleneck: str = option("none", "What lies between encoder and decoder.", MODEL, choices=BOTTLENECKS)
    beta: float = option(1e-6, "Weight of the KL term of bottleneck kl.", MODEL, least=0)
    levels: tuple[int, ...] = option((8, 5, 5, 5), "Levels of the channels of a codebook of bottleneck fsq, the most "
                                     "for the first ones.", MODEL, least=3, most=256)  # fmt: skip
    codebook_size: int = option(1024, "Codes of a codebook of bottleneck vq.", MODEL, least=2, most=_MOST_CODES)
    codebooks: int = option(4, "Codebooks of bottleneck vq, which share the latent channels.", MODEL, least=1,
                            most=65536)  # fmt: skip
    distance: str = option("euclidean", "What is near for bottleneck vq.", MODEL, choices=DISTANCES)
    commitment: float = option(0.25, "Weight of the commitment term of bottleneck vq.", MODEL, least=0)
    latent_noise: float = option(
        0.0, "Noise that training adds to latents, at most: each image's is between 0 and so many times the root mean "
        "square of its latent. Its decoder forgives the errors of a prior.", MODEL, least=0,
    )  # fmt: skip
    scale_equivariance: float = option(
        0.0, "Weight of the mean squared error between the image at half its size and what is decoded of the latent at "
        "half its size. Latents are smoother, and easier for a prior.", MODEL, least=0,
    )  # fmt: skip

    def _check_together(self) -> None:
        super()._check_together()
        sides = (4, 8, 16, 32)
        require(self.downsampling in sides, "--option downsampling", self.downsampling, "4, 8, 16 or 32")
        if self.bottleneck == "fsq":
            levels, product = ",".join(map(str, self.levels)), f"a product of at most {_MOST_CODES}"
            require(math.prod(self.levels) <= _MOST_CODES, "--option levels", levels, product)
            self._require_multiple(len(self.levels), "levels")
        if self.bottleneck == "vq":
            self._require_multiple(self.codebooks, "codebooks")
        is_continuous = self.bottleneck in ("none", "kl")
        for name in ("latent_noise", "scale_equivariance"):
            value = getattr(self, name)
            require(value == 0 or is_continuous, f"--option {name}", value,
                    f"0 with bottleneck {self.bottleneck}, whose latents are codes")  # fmt: skip

    def _require_multiple(self, count: int, what: str) -> None:
        require(self.latent_dim % count == 0, "--latent-dim", self.latent_dim, f"a multiple of the {count} {what}")


@dataclass(frozen=True)
class LatentDiffusionOptions(ModelOptions):
    """Those of the autoencoders of latent diffusion, with the names of diffusers' configs."""

    block_out_channels: tuple[int, ...] = option(
        (32, 64, 128, 128), "Channels at each resolution, from the finest; all but the last halve the sides.", MODEL,
        least=1, most=65536,
    )  # fmt: skip
    layers_per_block: int = option(1, "Residual blocks at each resolution of the encoder; the decoder has one more.",
                                   MODEL, least=1, most=64)  # fmt: skip
    latent_channels: int = option(16, "Latent channels.", MODEL, least=1, most=65536)
    norm_num_groups: int = option(8, "Groups of GroupNorm; 32 in published models.", MODEL, least=1, most=65536)
    mid_block_add_attention: bool = option(True, "Attention at the coarsest resolution.", MODEL)

    @property
    def downsampling(self) -> int:
        """Side of the patch that a position of the latent stands for, in pixels."""
        return 1 << (len(self.block_out_channels) - 1)

    def _check_together(self) -> None:
        shown = ",".join(map(str, self.block_out_channels))
        require(len(self.block_out_channels) <= 8, "--option block_out_channels", shown, "at most 8 numbers")
        divisible = all(channels % self.norm_num_groups == 0 for channels in self.block_out_channels)
        require(divisible, "--option block_out_channels", shown,
                f"multiples of the {self.norm_num_groups} of --option norm_num_groups")  # fmt: skip


@dataclass(frozen=True)
class KLOptions(LatentDiffusionOptions):
    """Those of the autoencoder with a Gaussian posterior."""

    use_quant_conv: bool = option(True, "A 1x1 convolution after the encoder.", MODEL)
    use_post_quant_conv: bool = option(True, "A 1x1 convolution before the decoder.", MODEL)
    beta: float = option(
        1e-6, "Weight of the KL term, a mean over the numbers of the latent. Latent diffusion's 1e-6 weighs sums over "
        "an image: here that is 1e-6 times the share that the latent keeps, 8e-8 for 1/12.", MODEL, least=0,
    )  # fmt: skip


@dataclass(frozen=True)
class VQOptions(LatentDiffusionOptions):
    """Those of the autoencoder with a codebook."""

    latent_channels: int = option(4, "Channels between the codes and the networks.", MODEL, least=1, most=65536)
    codebook_size: int = option(1024, "Codes in the codebook.", MODEL, least=2, most=2**20)
    vq_embed_dim: int | None = option(None, "Numbers of a code.", MODEL, shown_default="latent_channels", least=1,
                                      most=65536)  # fmt: skip
    commitment_weight: float = option(0.25, "Weight of the term that keeps vectors close to their codes.", MODEL,
                                      least=0)  # fmt: skip

    @property
    def code_dim(self) -> int:
        """`vq_embed_dim`, or its default."""
        return self.vq_embed_dim or self.latent_channels


@dataclass(frozen=True)
class FlowOptions:
    """Those of the flow: latents are projected to `channels`; the others are the transformer's.

    `heads` is by default width / 64, or 1 if that is no whole number. `latent_channels` and `side` are set from the
    autoencoder, whose latents have that shape. A token is a square of `patch` x `patch` positions. `whitening` divides
    each principal channel by its own standard deviation (`component`) or all by one (`common`). Runs that say neither
    are older ones, whose values are the defaults here; those of new ones are `default_patch` and `component`. `base` is
    what the transformer's velocity is added to: that of a Gaussian with the latents' mean and covariance, of at most
    2,048 numbers, or `none`, as in older runs. `classes` are the names of the images' classes, if it learns them; they
    too are set.
    """

    channels: int = 64
    width: int = 384
    depth: int = 6
    heads: int | None = None
    dropout: float = 0.0
    latent_channels: int = 1024
    side: int = 8
    patch: int = 1
    whitening: str = "common"
    base: str = "none"
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the ranges; raises ConfigError."""
        _require_transformer(self, channels=self.channels, latent_channels=self.latent_channels,
                             patch=self.patch)  # fmt: skip
        require(self.channels <= self.latent_channels, "--option channels", self.channels,
                f"at most the autoencoder's {self.latent_channels}")  # fmt: skip
        require(
            self.side % self.patch == 0, "--option patch", self.patch, f"a divisor of the latents' side {self.side}"
        )
        require(self.whitening in WHITENINGS, "--option whitening", self.whitening, f"one of {', '.join(WHITENINGS)}")
        require(self.base in BASES, "--option base", self.base, f"one of {', '.join(BASES)}")
        require(self.base in ("none", default_base(self.channels, self.side)), "--option base", self.base,
                f"none for latents of {self.numbers} numbers, more than {_MOST_GAUSSIAN}")  # fmt: skip

    @property
    def attention_heads(self) -> int:
        """`heads`, or its default."""
        return _attention_heads(self)

    @property
    def numbers(self) -> int:
        """How many numbers a whitened latent has."""
        return self.channels * self.side**2


def default_base(channels: int, side: int) -> str:
    """Return `gaussian` where a covariance of so many numbers is affordable, otherwise `none`."""
    return "gaussian" if channels * side**2 <= _MOST_GAUSSIAN else "none"


def default_patch(side: int) -> int:
    """Return the smallest patch of 1, 2 and 4 that makes at most 16 tokens of latents of that side.

    Tokens decide what a step costs: 16 of them take 0.03 TFLOP in the recipe. Where no such patch divides the side it
    is the largest that does.
    """
    possible = [patch for patch in (1, 2, 4) if side % patch == 0]
    return next((patch for patch in possible if (side // patch) ** 2 <= _MOST_TOKENS), possible[-1])


@dataclass(frozen=True)
class AutoregressiveOptions:
    """Those of the prior over codes: the transformer's, as the flow's.

    `levels` of the digits of a code, the number of `codebooks` and the `side` are set from the autoencoder. `classes`
    are the names of the images' classes, if it learns them; they too are set.
    """

    width: int = 192
    depth: int = 4
    heads: int | None = None
    dropout: float = 0.1
    levels: tuple[int, ...] = (1024,)
    codebooks: int = 1
    side: int = 8
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the ranges; raises ConfigError."""
        _require_transformer(self, codebooks=self.codebooks)
        are_levels = len(self.levels) > 0 and all(1 <= levels <= 2**20 for levels in self.levels)
        require(are_levels, "--option levels", ",".join(map(str, self.levels)), "whole numbers from 1 to 2^20")

    @property
    def attention_heads(self) -> int:
        """`heads`, or its default."""
        return _attention_heads(self)


def _attention_heads(options: FlowOptions | AutoregressiveOptions) -> int:
    return options.heads if options.heads is not None else options.width // 64 if options.width % 64 == 0 else 1


def _require_transformer(options: FlowOptions | AutoregressiveOptions, **more_sizes: int) -> None:
    """Check what priors have in common, and that their other sizes are such; raises ConfigError."""
    sizes = {"width": options.width, "depth": options.depth, "side": options.side, "heads": options.attention_heads}
    for name, size in {**sizes, **more_sizes}.items():
        flag = "--width" if name == "width" else f"--option {name}"
        require(1 <= size <= 65536, flag, size, "a whole number from 1 to 65536")
    require(options.width % options.attention_heads == 0, "--width", options.width,
            f"a multiple of the {options.attention_heads} heads")  # fmt: skip
    require(0 <= options.dropout < 1, "--option dropout", options.dropout, "a number of at least 0 and below 1")
