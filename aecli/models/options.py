"""The options of the built-in models, with the report's values as defaults. No torch here: the help shows them."""

from dataclasses import dataclass

from aecli.configs import require


@dataclass(frozen=True)
class AutoencoderOptions:
    """`width`: channels of the first block, the others its 2, 4, 8 and 16 fold. `latent_dim`: 16·width by default."""

    width: int = 64
    latent_dim: int | None = None

    def __post_init__(self) -> None:
        """Refuse sizes that no machine can mean."""
        require(1 <= self.width <= 4096, "--width", self.width, "a whole number from 1 to 4096")
        require(self.latent_dim is None or 1 <= self.latent_dim <= 65536, "--latent-dim", self.latent_dim,
                "a whole number from 1 to 65536")  # fmt: skip

    @property
    def latent_channels(self) -> int:
        """`latent_dim`, worked out."""
        return self.latent_dim or 16 * self.width


@dataclass(frozen=True)
class VAEOptions(AutoencoderOptions):
    """`beta`: the weight of the KL term. The report's listing runs 2.5e-5, its hyperparameter table says 2.5e-4."""

    beta: float = 2.5e-5

    def __post_init__(self) -> None:
        """Refuse a weight that can't be meant."""
        super().__post_init__()
        require(0 <= self.beta < float("inf"), "--beta", self.beta, "a number of at least 0")
