"""The options of the built-in models, with the report's values as defaults. No torch here: the help shows them."""

from dataclasses import dataclass

from aecli.configs.checks import require
from aecli.configs.options import MODEL, option


@dataclass(frozen=True)
class AutoencoderOptions:
    """`width`: channels of the first block, the others its 2, 4, 8 and 16 fold. `latent_dim`: 16·width by default."""

    width: int = option(64, "Channels of the first block; the others are its 2, 4, 8 and 16 fold.", MODEL)
    latent_dim: int | None = option(None, "Latent channels.", MODEL, shown_default="16 x width")

    def __post_init__(self) -> None:
        """Check the ranges; raises ConfigError."""
        require(1 <= self.width <= 4096, "--width", self.width, "a whole number from 1 to 4096")
        require(self.latent_dim is None or 1 <= self.latent_dim <= 65536, "--latent-dim", self.latent_dim,
                "a whole number from 1 to 65536")  # fmt: skip

    @property
    def latent_channels(self) -> int:
        """`latent_dim`, or its default."""
        return self.latent_dim or 16 * self.width


@dataclass(frozen=True)
class VAEOptions(AutoencoderOptions):
    """`beta`: the weight of the KL term. The report's listing runs 2.5e-5, its hyperparameter table says 2.5e-4."""

    beta: float = option(
        2.5e-5, "Weight of the VAE's KL term. The report's listing runs 2.5e-5; its hyperparameter table says 2.5e-4.",
        MODEL,
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Check the ranges; raises ConfigError."""
        super().__post_init__()
        require(0 <= self.beta < float("inf"), "--beta", self.beta, "a number of at least 0")


@dataclass(frozen=True)
class FlowOptions:
    """A flow's: `channels` that latents are projected to; `width`, `depth`, `heads` and `dropout` of the transformer.

    By default heads have a dimension of 64 where that divides the width; else there is one head. `latent_channels` and
    `side` are the shape of the autoencoder's latents, and set from it.
    """

    channels: int = 64
    width: int = 384
    depth: int = 6
    heads: int | None = None
    dropout: float = 0.0
    latent_channels: int = 1024
    side: int = 8

    def __post_init__(self) -> None:
        """Check the ranges; raises ConfigError."""
        sizes = {"channels": self.channels, "depth": self.depth, "latent_channels": self.latent_channels,
                 "side": self.side, "heads": self.attention_heads}  # fmt: skip
        for name, size in {"width": self.width, **sizes}.items():
            flag = "--width" if name == "width" else f"--option {name}"
            require(1 <= size <= 65536, flag, size, "a whole number from 1 to 65536")
        require(self.channels <= self.latent_channels, "--option channels", self.channels,
                f"at most the autoencoder's {self.latent_channels}")  # fmt: skip
        require(self.width % self.attention_heads == 0, "--width", self.width,
                f"a multiple of the {self.attention_heads} heads")  # fmt: skip
        require(0 <= self.dropout < 1, "--option dropout", self.dropout, "a number from 0 up to, not including, 1")

    @property
    def attention_heads(self) -> int:
        """`heads`, or its default."""
        return self.heads if self.heads is not None else self.width // 64 if self.width % 64 == 0 else 1
