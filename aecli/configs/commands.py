"""What the other commands take: one frozen dataclass a command, with every default and check.

`None` stands for "not given; worked out when the command runs".
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aecli.configs.checks import (
    FEATURES,
    LARGEST_SIDE,
    LPIPS_NETS,
    METRICS,
    MISMATCH_ACTIONS,
    MOST_DRAWN,
    MOST_SAMPLES,
    PRIORS,
    SPLITS,
    SSIM_WINDOWS,
    require,
)  # fmt: skip
from aecli.configs.options import DATA, MACHINE, METRICS_PANEL, MODEL, OUTPUT, RUN, CheckedOptions, option
from aecli.configs.train import (
    SOURCE_HELP,
    DataConfig,
    device_option,
    precision_option,
    runs_option,
    seed_option,
    workers_option,
)  # fmt: skip


def model_option() -> Any:
    """Return the field of `--model`, a trained model."""
    return option(..., "A registry name (its newest run under --runs), a run folder, or a .safetensors file.", MODEL,
                  metavar="MODEL", completes="model")  # fmt: skip


def batch_size_option() -> Any:
    """Return the field of `--batch-size`, of commands that don't train."""
    return option(16, "Images at a time.", MACHINE, least=1)


def overwrite_option() -> Any:
    """Return the field of `--overwrite`."""
    return option(False, "Write into a folder that already holds files, and over those of the same name; never over "
                  "what is read.", OUTPUT)  # fmt: skip


def walk_prior_option() -> Any:
    """Return the field of `--prior`, of walks through its space."""
    return option("auto", "The prior in whose space the walk goes; auto takes the best of those fitted.", RUN,
                  choices=tuple(prior for prior in PRIORS if prior != "flow"))  # fmt: skip


def walk_out_option(name: str) -> Any:
    """Return the field of `--out`, of walks."""
    return option(Path(f"{name}.png"), "A .png sheet, or an animated .gif or .webp; one that is there is replaced.",
                  OUTPUT, metavar="FILE")  # fmt: skip


@dataclass(frozen=True)
class ReconstructConfig(CheckedOptions):
    """`aecli reconstruct`. Without `data`, the run's validation images; `split` is then `val`, else `all`."""

    model: str = model_option()
    data: str | None = option(None, f"Images to reconstruct. {SOURCE_HELP}", DATA, metavar="SOURCE",
                              completes="source", shown_default="the run's validation images")  # fmt: skip
    split: str | None = option(None, "Which of the images, by the run's own split.", DATA, choices=SPLITS,
                               shown_default="all of --data, or val")  # fmt: skip
    native: bool = option(False, "Keep each image's own size: pad to a multiple of 32, reconstruct, crop back.", DATA)
    out: Path | None = option(None, "Folder to write to.", OUTPUT, metavar="DIR",
                              shown_default="reconstructions/MODEL")  # fmt: skip
    latents: Path | None = option(
        None, "Save the latents too: `mean` (N, …) and, where the model has a posterior, `log_variance`, with the "
        "images' names in the metadata.", OUTPUT, metavar="FILE.safetensors",
    )  # fmt: skip
    overwrite: bool = overwrite_option()
    runs: Path = runs_option()
    batch_size: int = batch_size_option()
    device: str = device_option()
    precision: str = precision_option()
    workers: int | None = workers_option()

    def __post_init__(self) -> None:
        """Check what options say together; raises ConfigError, which names the flag."""
        super().__post_init__()
        if self.latents is not None:
            require(self.latents.suffix == ".safetensors", "--latents", self.latents, "the name of a .safetensors file")
            require(not self.native, "--latents", self.latents, "no --native, which makes latents of differing sizes")


@dataclass(frozen=True)
class SampleConfig(CheckedOptions):
    """`aecli sample`. `out` is a `.png` sheet, or a folder of one PNG an image; `steps` are those of a `flow`."""

    model: str = model_option()
    prior: str = option(
        "auto", "What latents are drawn from; auto takes the best available. gaussian and mixture are fitted on first "
        "use, flow is trained by aecli train prior.", RUN, choices=PRIORS,
    )  # fmt: skip
    n: int = option(64, "How many images.", RUN, least=1, most=MOST_SAMPLES)
    steps: int | None = option(None, "Steps of a flow's solver.", RUN, shown_default="50", least=1, most=MOST_DRAWN)
    temperature: float = option(1.0, "What the prior's standard deviations are multiplied by.", RUN, least=0, most=1e6)
    seed: int = seed_option()
    out: Path = option(
        Path("samples.png"), "A .png sheet, which is replaced if it is there; or a folder of one PNG an image.",
        OUTPUT, metavar="FILE|DIR",
    )  # fmt: skip
    overwrite: bool = overwrite_option()
    runs: Path = runs_option()
    device: str = device_option()
    precision: str = precision_option()

    def __post_init__(self) -> None:
        """Check what options say together; raises ConfigError, which names the flag."""
        super().__post_init__()
        require(self.steps is None or self.prior in ("auto", "flow"), "--steps", self.steps,
                "--prior flow, which alone takes steps")  # fmt: skip


@dataclass(frozen=True)
class InterpolateConfig(CheckedOptions):
    """`aecli interpolate A B`: what lies between two images."""

    first: Path = option(..., "The image file to begin at.", "", metavar="A", positional=True)
    second: Path = option(..., "The image file to end at.", "", metavar="B", positional=True)
    model: str = model_option()
    prior: str = walk_prior_option()
    steps: int = option(8, "Pictures in the row.", RUN, least=2, most=MOST_DRAWN)
    out: Path = walk_out_option("interpolation")
    runs: Path = runs_option()
    device: str = device_option()
    precision: str = precision_option()


@dataclass(frozen=True)
class TraverseConfig(CheckedOptions):
    """`aecli traverse`: what lies along the directions in which latents vary most."""

    model: str = model_option()
    prior: str = walk_prior_option()
    n: int = option(8, "How many directions, a row each.", RUN, least=1, most=MOST_DRAWN)
    steps: int = option(7, "Pictures in a row.", RUN, least=2, most=MOST_DRAWN)
    out: Path = walk_out_option("traversal")
    runs: Path = runs_option()
    device: str = device_option()
    precision: str = precision_option()

    def __post_init__(self) -> None:
        """Check what options say together; raises ConfigError, which names the flag."""
        super().__post_init__()
        require(self.prior != "normal", "--prior", self.prior, "gaussian: N(0, I) has no principal directions")


@dataclass(frozen=True)
class EvalConfig(CheckedOptions):
    """`aecli eval`. Each of `pred`, or of `samples`, is `[NAME=]SOURCE`.

    `samples` are compared as sets, on `features`, and with `train` for how near they come to it; `pred` image by image.
    """

    gt: str = option(..., f"Ground truth. {SOURCE_HELP}", DATA, metavar="SOURCE", completes="source")
    pred: tuple[str, ...] = option(
        (), "Images to compare with it, of the same relative names (suffixes aside); repeatable.", DATA,
        metavar="[NAME=]SOURCE", completes="prediction",
    )  # fmt: skip
    samples: tuple[str, ...] = option(
        (), "New images, compared with the ground truth as sets, whatever their names; repeatable.", DATA,
        metavar="[NAME=]SOURCE", completes="prediction",
    )  # fmt: skip
    train: str | None = option(None, "With --samples: the training images; tells whether samples are copies of them.",
                               DATA, metavar="SOURCE", completes="source")  # fmt: skip
    on_mismatch: str = option("error", "Images without a partner or of another size: fail, leave them out, or resize "
                              "the prediction.", DATA, choices=MISMATCH_ACTIONS)  # fmt: skip
    metrics: tuple[str, ...] = option(METRICS, "Which, separated by commas.", METRICS_PANEL, metavar=",".join(METRICS),
                                      choices=METRICS, separated=True)  # fmt: skip
    lpips_net: str = option("alex", "LPIPS' network; alex ships with aecli.", METRICS_PANEL, choices=LPIPS_NETS)
    lpips_weights: Path | None = option(None, "That network's convolution weights, .safetensors or torchvision's .pth.",
                                        METRICS_PANEL, metavar="FILE")  # fmt: skip
    ssim_window: str = option("gaussian", "Wang's Gaussian window, or scikit-image's plain 7×7 one.", METRICS_PANEL,
                              choices=SSIM_WINDOWS)  # fmt: skip
    features: str = option("auto", "With --samples: the network that sees them; auto is inception (extra: fid) where "
                           "its weights are, else alex.", METRICS_PANEL, choices=FEATURES)  # fmt: skip
    per_image: Path | None = option(None, "Write every image's numbers to this file; one that is there is replaced.",
                                    OUTPUT, metavar="FILE.csv")  # fmt: skip
    report: Path | None = option(
        None, "Write a page to look at: tables, charts and every image, worst first, in one file (with a folder of "
        "pictures beside it if there are many); one that is there is replaced.", OUTPUT, metavar="FILE.html",
    )  # fmt: skip
    batch_size: int = batch_size_option()
    workers: int | None = workers_option()
    device: str = device_option()

    def __post_init__(self) -> None:
        """Check what options say together; raises ConfigError, which names the flag."""
        super().__post_init__()
        require(self.report is None or self.report.suffix.lower() in (".html", ".htm"), "--report", self.report,
                "the name of a .html file")  # fmt: skip
        require(self.report is None or self.report != self.per_image, "--report", self.report,
                "another file than --per-image")  # fmt: skip
        require(bool(self.pred or self.samples), "--pred", "", "at least one [NAME=]SOURCE, or one of --samples")
        require(len(self.metrics) > 0, "--metrics", "", f"some of {','.join(METRICS)}")
        require(self.lpips_weights is None or "lpips" in self.metrics, "--lpips-weights", self.lpips_weights,
                f"lpips among the metrics, not --metrics {','.join(self.metrics)}")  # fmt: skip
        if self.samples:
            self._require_sets()
        else:
            require(self.train is None, "--train", self.train, "--samples, whose images are compared with it")
            require(self.features == "auto", "--features", self.features, "--samples, which are seen by them")

    def _require_sets(self) -> None:
        require(not self.pred, "--samples", self.samples[0], "no --pred: one compares sets, the other image by image")
        for flag in ("per_image", "report", "lpips_weights"):
            value = getattr(self, flag)
            require(value is None, f"--{flag.replace('_', '-')}", value, "--pred: sets have no numbers an image")
        require(self.metrics == METRICS, "--metrics", ",".join(self.metrics), "--pred: sets have metrics of their own")
        require(self.on_mismatch != "resize", "--on-mismatch", self.on_mismatch, "error or skip with --samples")


@dataclass(frozen=True)
class GridConfig(CheckedOptions):
    """`aecli grid`. By default, every registry model that has a run, on the first run's validation images."""

    n: int = option(10, "How many images, chosen at random.", DATA, least=1, most=MOST_DRAWN)
    data: str | None = option(None, f"Images to choose from. {SOURCE_HELP}", DATA, metavar="SOURCE",
                              completes="source", shown_default="the first run's validation images")  # fmt: skip
    models: tuple[str, ...] = option(
        (), "A row for this model: a registry name, a run folder, or a .safetensors file; repeatable.", MODEL,
        name="model", metavar="MODEL", completes="model", shown_default="every registry model that has a run",
    )  # fmt: skip
    out: Path = option(Path("grid.png"), "The picture to write; one that is there is replaced.", OUTPUT,
                       metavar="FILE.png")  # fmt: skip
    seed: int = seed_option()
    runs: Path = runs_option()
    device: str = device_option()
    precision: str = precision_option()


@dataclass(frozen=True)
class ModelsConfig(CheckedOptions):
    """`aecli models`: where to look for runs; `image_size` is the one for which sizes and costs are stated."""

    runs: Path = runs_option()
    image_size: int = DataConfig.image_size
    device: str = device_option()
    precision: str = precision_option()

    def __post_init__(self) -> None:
        """Check what options say together; raises ConfigError, which names the flag."""
        super().__post_init__()
        require(1 <= self.image_size <= LARGEST_SIDE, "--image-size", self.image_size, f"from 1 to {LARGEST_SIDE}")
