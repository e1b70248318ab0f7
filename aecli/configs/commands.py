"""What the other commands are told: one frozen dataclass a command, with every default and its checks.

`None` stands for "not given; worked out when the command runs".
"""

from dataclasses import dataclass
from pathlib import Path

from aecli.configs.checks import (
    FEATURES,
    LPIPS_NETS,
    METRICS,
    MISMATCH_ACTIONS,
    MOST_DRAWN,
    MOST_SAMPLES,
    PRECISIONS,
    PRIORS,
    SPLITS,
    SSIM_WINDOWS,
    is_number,
    require,
    require_choice,
    require_count,
    require_device,
    require_seed,
    require_workers,
)
from aecli.configs.train import DataConfig


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
            require_choice("--split", self.split, SPLITS)
        require_count("--batch-size", self.batch_size)
        require_device(self.device)
        require_choice("--precision", self.precision, PRECISIONS)
        require_workers(self.workers)


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
        require_choice("--prior", self.prior, PRIORS)
        require_count("--n", self.n)
        require(self.count <= MOST_SAMPLES, "--n", self.n, f"at most {MOST_SAMPLES}")
        require_count("--steps", self.steps)
        require(self.steps is None or self.steps <= MOST_DRAWN, "--steps", self.steps, f"at most {MOST_DRAWN}")
        if not (self.interpolate or self.traverse):
            require(self.steps is None or self.prior in ("auto", "flow"), "--steps", self.steps,
                    "--prior flow, --interpolate or --traverse, which alone take steps")  # fmt: skip
        else:
            self._require_walk()
        require(is_number(self.temperature) and 0 <= self.temperature <= 1e6, "--temperature",
                self.temperature, "a number from 0 to 1e6")  # fmt: skip
        require_seed(self.seed)
        require_device(self.device)
        require_choice("--precision", self.precision, PRECISIONS)

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
        require_choice("--features", self.features, FEATURES)
        if self.samples:
            self._require_sets()
        else:
            require(self.train is None, "--train", self.train, "--samples, whose images are compared with it")
            require(self.features == "auto", "--features", self.features, "--samples, which are seen by them")
        require(len(self.metrics) > 0, "--metrics", "", f"some of {','.join(METRICS)}")
        for metric in self.metrics:
            require_choice("--metrics", metric, METRICS)
        require_choice("--lpips-net", self.lpips_net, LPIPS_NETS)
        require(self.lpips_weights is None or "lpips" in self.metrics, "--lpips-weights", self.lpips_weights,
                f"lpips among the metrics, not --metrics {','.join(self.metrics)}")  # fmt: skip
        require_choice("--ssim-window", self.ssim_window, SSIM_WINDOWS)
        require_choice("--on-mismatch", self.on_mismatch, MISMATCH_ACTIONS)
        require_count("--batch-size", self.batch_size)
        require_workers(self.workers)
        require_device(self.device)

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
        require_count("--n", self.n)
        require(self.n <= MOST_DRAWN, "--n", self.n, f"at most {MOST_DRAWN}")
        require_seed(self.seed)
        require_device(self.device)
        require_choice("--precision", self.precision, PRECISIONS)


@dataclass(frozen=True)
class ModelsConfig:
    """`aecli models`: where to look for runs."""

    runs: Path = Path("runs")
    image_size: int = DataConfig.image_size
    device: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        """Refuse values that can't be meant, naming the flag."""
        require_count("--image-size", self.image_size)
        require_device(self.device)
        require_choice("--precision", self.precision, PRECISIONS)
