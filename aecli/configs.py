"""One frozen dataclass a command: the single home of every default and of its checks.

Only the standard library is imported here, so that the command line can show defaults and refuse nonsense at once.
`None` stands for "not given; worked out when the command runs".
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aecli.errors import ConfigError

FITS = ("squash", "crop")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
LOGS = ("tensorboard",)
PRIORS = ("auto", "normal", "gaussian", "mixture", "flow")
COMPILE_MODES = ("auto", "on", "off")
SYNC_MODES = ("auto", "on", "off")
LARGEST_SIDE = 2**14  # of the square images that a model takes; the decoder stops at as many pixels
MOST_WORKERS = 1024
MOST_DRAWN = 1024  # images on a sheet, or in a row of a grid
MOST_SAMPLES = 1_000_000  # files of six digits
MODEL_FLAGS = {
    "width": "--width",
    "latent_dim": "--latent-dim",
    "beta": "--beta",
}  # model options with flags of their own
SPLITS = ("all", "train", "val")
METRICS = ("psnr", "ssim", "lpips")
LPIPS_NETS = ("alex", "vgg", "squeeze")
FEATURES = ("auto", "inception", "alex")
SSIM_WINDOWS = ("gaussian", "uniform")
MISMATCH_ACTIONS = ("error", "skip", "resize")


def require(condition: bool, flag: str, value: object, expected: str) -> None:
    """Raise a ConfigError that names `flag` and `value` unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{flag} {value}: expected {expected}")


def _require_count(flag: str, value: int | None, least: int = 1) -> None:
    is_count = value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= least)
    require(is_count, flag, value, f"a whole number of at least {least}")


def _require_workers(value: int | None) -> None:
    _require_count("--workers", value)
    require(value is None or value <= MOST_WORKERS, "--workers", value, f"at most {MOST_WORKERS}")


def _require_choice(flag: str, value: str, choices: tuple[str, ...]) -> None:
    require(value in choices, flag, value, f"one of {', '.join(choices)}")


def _require_device(value: str) -> None:
    known = isinstance(value, str) and re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value)
    require(bool(known), "--device", value, "auto, cpu, mps, cuda or cuda:N")


def _require_seed(value: int) -> None:
    require(isinstance(value, int) and 0 <= value < 2**63, "--seed", value, "a whole number from 0 to 2^63 - 1")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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
        require(_is_number(self.val_fraction) and 0 <= self.val_fraction < 1, "--val-fraction", self.val_fraction,
                "a number from 0 up to, not including, 1")  # fmt: skip
        for flag, count in (("--epochs", self.epochs), ("--steps", self.steps), ("--epoch-steps", self.epoch_steps),
                            ("--shuffle-buffer", self.shuffle_buffer)):  # fmt: skip
            _require_count(flag, count)
        _require_count("--image-size", self.image_size)
        require(self.image_size <= LARGEST_SIDE, "--image-size", self.image_size, f"at most {LARGEST_SIDE}")
        _require_choice("--fit", self.fit, FITS)
        _require_count("--batch-size", self.batch_size)
        _require_count("--accumulate", self.accumulate)
        require(self.accumulate <= self.batch_size, "--accumulate", self.accumulate,
                f"at most --batch-size, which is {self.batch_size}")  # fmt: skip
        _require_choice("--sync-batchnorm", self.sync_batchnorm, SYNC_MODES)
        require(_is_number(self.lr) and 0 < self.lr < float("inf"), "--lr", self.lr, "a number above 0")
        require(self.ema is None or (_is_number(self.ema) and 0 < self.ema < 1), "--ema", self.ema,
                "a number between 0 and 1, such as 0.999")  # fmt: skip
        _require_count("--patience", self.patience)
        require(_is_number(self.checkpoint_every) and 0 < self.checkpoint_every < float("inf"), "--checkpoint-every",
                self.checkpoint_every, "a number of minutes above 0")  # fmt: skip
        if self.log is not None:
            _require_choice("--log", self.log, LOGS)
        _require_seed(self.seed)
        _require_choice("--precision", self.precision, PRECISIONS)
        _require_choice("--compile", self.compile, COMPILE_MODES)
        _require_device(self.device)
        _require_workers(self.workers)
        require(self.cache != "", "--cache", "''", "auto, off or a folder")


@dataclass(frozen=True)
class ReconstructConfig:
    """`aecli reconstruct`. Without `data`, the run's validation images; `split` is then `val`, else `all`."""

    model: str
    data: str | None = None
    split: str | None = None
    out: Path | None = None
    overwrite: bool = False
    latents: Path | None = None
    native: bool = False
    batch_size: int = 16
    device: str = "auto"
    precision: str = "auto"
    workers: int | None = None
    runs: Path = Path("runs")

    def __post_init__(self) -> None:
        """Refuse values that can't be meant, naming the flag."""
        if self.latents is not None:
            require(self.latents.suffix == ".safetensors", "--latents", self.latents, "the name of a .safetensors file")
            require(not self.native, "--latents", self.latents, "no --native, which makes latents of differing sizes")
        if self.split is not None:
            _require_choice("--split", self.split, SPLITS)
        _require_count("--batch-size", self.batch_size)
        _require_device(self.device)
        _require_choice("--precision", self.precision, PRECISIONS)
        _require_workers(self.workers)


@dataclass(frozen=True)
class SampleConfig:
    """`aecli sample`. `out` is a `.png` sheet, or a folder of one PNG an image.

    With `interpolate`, what lies between two images, and with `traverse`, what lies along the latents' principal
    directions: then `out` is a `.png` sheet, or an animated `.gif` or `.webp`, `n` the number of directions, and
    `steps` that of pictures in a row. Without, `steps` is how many a `flow` takes.
    """

    model: str
    n: int | None = None
    temperature: float = 1.0
    out: Path | None = None
    overwrite: bool = False
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    runs: Path = Path("runs")
    prior: str = "auto"
    steps: int | None = None
    interpolate: tuple[Path, Path] | None = None
    traverse: bool = False

    def __post_init__(self) -> None:
        """Refuse values that can't be meant, naming the flag."""
        _require_choice("--prior", self.prior, PRIORS)
        _require_count("--n", self.n)
        require(self.count <= MOST_SAMPLES, "--n", self.n, f"at most {MOST_SAMPLES}")
        _require_count("--steps", self.steps)
        require(self.steps is None or self.steps <= MOST_DRAWN, "--steps", self.steps, f"at most {MOST_DRAWN}")
        if not (self.interpolate or self.traverse):
            require(self.steps is None or self.prior in ("auto", "flow"), "--steps", self.steps,
                    "--prior flow, --interpolate or --traverse, which alone take steps")  # fmt: skip
        else:
            self._require_walk()
        require(_is_number(self.temperature) and 0 <= self.temperature <= 1e6, "--temperature",
                self.temperature, "a number from 0 to 1e6")  # fmt: skip
        _require_seed(self.seed)
        _require_device(self.device)
        _require_choice("--precision", self.precision, PRECISIONS)

    def _require_walk(self) -> None:
        flag = "--interpolate" if self.interpolate else "--traverse"
        require(not (self.interpolate and self.traverse), flag, "", "that or --traverse, not both")
        require(self.prior != "flow", "--prior", self.prior, f"normal, gaussian or mixture with {flag}")
        require(self.temperature == 1, "--temperature", self.temperature, f"none with {flag}, which draws nothing")
        require(self.steps is None or self.steps >= 2, "--steps", self.steps, f"at least 2 with {flag}")
        require(not (self.interpolate and self.n), "--n", self.n, f"none with {flag}, which is one row")
        require(not (self.traverse and self.prior == "normal"), "--prior", self.prior,
                "gaussian with --traverse: N(0, I) has no principal directions")  # fmt: skip

    @property
    def count(self) -> int:
        """How many samples, or directions: `n`, worked out."""
        return self.n or (8 if self.traverse else 64)

    @property
    def walk_steps(self) -> int:
        """Pictures in a row of a walk: `steps`, worked out."""
        return self.steps or (8 if self.interpolate else 7)

    @property
    def target(self) -> Path:
        """Where to write: `out`, worked out."""
        name = "interpolation" if self.interpolate else "traversal" if self.traverse else "samples"
        return self.out or Path(f"{name}.png")


@dataclass(frozen=True)
class EvalConfig:
    """`aecli eval`. Each of `pred`, or of `samples`, is `[NAME=]SOURCE`.

    `samples` are compared as sets, on `features`, and with `train` for how near they come to it; `pred` image by image.
    """

    gt: str
    pred: tuple[str, ...] = ()
    metrics: tuple[str, ...] = METRICS
    lpips_net: str = "alex"
    lpips_weights: Path | None = None
    ssim_window: str = "gaussian"
    on_mismatch: str = "error"
    per_image: Path | None = None
    report: Path | None = None
    batch_size: int = 16
    workers: int | None = None
    device: str = "auto"
    samples: tuple[str, ...] = ()
    train: str | None = None
    features: str = "auto"

    def __post_init__(self) -> None:
        """Refuse values that can't be meant, naming the flag."""
        require(self.report is None or self.report.suffix.lower() in (".html", ".htm"), "--report", self.report,
                "the name of a .html file")  # fmt: skip
        require(self.report is None or self.report != self.per_image, "--report", self.report,
                "another file than --per-image")  # fmt: skip
        require(bool(self.pred or self.samples), "--pred", "", "at least one [NAME=]SOURCE, or one of --samples")
        _require_choice("--features", self.features, FEATURES)
        if self.samples:
            self._require_sets()
        else:
            require(self.train is None, "--train", self.train, "--samples, whose images are compared with it")
            require(self.features == "auto", "--features", self.features, "--samples, which are seen by them")
        require(len(self.metrics) > 0, "--metrics", "", f"some of {','.join(METRICS)}")
        for metric in self.metrics:
            _require_choice("--metrics", metric, METRICS)
        _require_choice("--lpips-net", self.lpips_net, LPIPS_NETS)
        require(self.lpips_weights is None or "lpips" in self.metrics, "--lpips-weights", self.lpips_weights,
                f"lpips among the metrics, not --metrics {','.join(self.metrics)}")  # fmt: skip
        _require_choice("--ssim-window", self.ssim_window, SSIM_WINDOWS)
        _require_choice("--on-mismatch", self.on_mismatch, MISMATCH_ACTIONS)
        _require_count("--batch-size", self.batch_size)
        _require_workers(self.workers)
        _require_device(self.device)

    def _require_sets(self) -> None:
        require(not self.pred, "--samples", self.samples[0], "no --pred: one compares sets, the other image by image")
        for flag in ("per_image", "report", "lpips_weights"):
            value = getattr(self, flag)
            require(value is None, f"--{flag.replace('_', '-')}", value, "--pred: sets have no numbers an image")
        require(self.metrics == METRICS, "--metrics", ",".join(self.metrics), "--pred: sets are measured otherwise")
        require(self.on_mismatch != "resize", "--on-mismatch", self.on_mismatch, "error or skip with --samples")


@dataclass(frozen=True)
class GridConfig:
    """`aecli grid`. By default, every registry model that has a run, on the first run's validation images."""

    n: int = 10
    models: tuple[str, ...] = ()
    data: str | None = None
    out: Path = Path("grid.png")
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    runs: Path = Path("runs")

    def __post_init__(self) -> None:
        """Refuse values that can't be meant, naming the flag."""
        _require_count("--n", self.n)
        require(self.n <= MOST_DRAWN, "--n", self.n, f"at most {MOST_DRAWN}")
        _require_seed(self.seed)
        _require_device(self.device)
        _require_choice("--precision", self.precision, PRECISIONS)


@dataclass(frozen=True)
class ModelsConfig:
    """`aecli models`: where to look for runs."""

    runs: Path = Path("runs")
    image_size: int = TrainConfig.image_size
    device: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        """Refuse values that can't be meant, naming the flag."""
        _require_count("--image-size", self.image_size)
        _require_device(self.device)
        _require_choice("--precision", self.precision, PRECISIONS)
