"""What `aecli train` is told, with every default and its checks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aecli.configs.checks import (
    COMPILE_MODES,
    FITS,
    LARGEST_SIDE,
    LOGS,
    PRECISIONS,
    SYNC_MODES,
    is_number,
    require,
    require_choice,
    require_count,
    require_device,
    require_seed,
    require_workers,
)


@dataclass(frozen=True)
class TrainConfig:
    """`aecli train`. The defaults are the report's recipe, to the letter.

    `options` are the model's own (width, latent_dim, beta, …), each refused by name where the model has no such option;
    `model_defaults` are a recipe's values for them, used only where the model has them.
    """

    model: str
    data: str = "demo"
    val_data: str | None = None
    val_fraction: float = 0.1
    epochs: int = 1000
    steps: int | None = None  # in place of epochs
    epoch_steps: int = 1000  # of a stream, which has no end
    shuffle_buffer: int = 4096  # images of a stream
    image_size: int = 256
    fit: str = "squash"
    batch_size: int = 32
    accumulate: int = 1
    sync_batchnorm: str = "auto"
    lr: float = 1e-4
    options: Mapping[str, Any] = field(default_factory=dict)
    model_defaults: Mapping[str, Any] = field(default_factory=dict)
    flip: bool = False
    ema: float | None = None
    patience: int | None = None
    checkpoint_every: float = 10.0  # minutes
    log: str | None = None
    seed: int = 0
    precision: str = "auto"
    compile: str = "auto"
    deterministic: bool = False
    device: str = "auto"
    workers: int | None = None
    cache: str = "auto"
    out: Path | None = None
    runs: Path = Path("runs")
    restart: bool = False
    autoencoder: str | None = None  # whose latents a prior learns

    def __post_init__(self) -> None:
        """Refuse values that can't be meant, naming the flag."""
        require(is_number(self.val_fraction) and 0 <= self.val_fraction < 1, "--val-fraction", self.val_fraction,
                "a number from 0 up to, not including, 1")  # fmt: skip
        for flag, count in (("--epochs", self.epochs), ("--steps", self.steps), ("--epoch-steps", self.epoch_steps),
                            ("--shuffle-buffer", self.shuffle_buffer)):  # fmt: skip
            require_count(flag, count)
        require_count("--image-size", self.image_size)
        require(self.image_size <= LARGEST_SIDE, "--image-size", self.image_size, f"at most {LARGEST_SIDE}")
        require_choice("--fit", self.fit, FITS)
        require_count("--batch-size", self.batch_size)
        require_count("--accumulate", self.accumulate)
        require(self.accumulate <= self.batch_size, "--accumulate", self.accumulate,
                f"at most --batch-size, which is {self.batch_size}")  # fmt: skip
        require_choice("--sync-batchnorm", self.sync_batchnorm, SYNC_MODES)
        require(is_number(self.lr) and 0 < self.lr < float("inf"), "--lr", self.lr, "a number above 0")
        require(self.ema is None or (is_number(self.ema) and 0 < self.ema < 1), "--ema", self.ema,
                "a number between 0 and 1, such as 0.999")  # fmt: skip
        require_count("--patience", self.patience)
        require(is_number(self.checkpoint_every) and 0 < self.checkpoint_every < float("inf"), "--checkpoint-every",
                self.checkpoint_every, "a number of minutes above 0")  # fmt: skip
        if self.log is not None:
            require_choice("--log", self.log, LOGS)
        require_seed(self.seed)
        require_choice("--precision", self.precision, PRECISIONS)
        require_choice("--compile", self.compile, COMPILE_MODES)
        require_device(self.device)
        require_workers(self.workers)
        require(self.cache != "", "--cache", "''", "auto, off or a folder")
