"""The options of `encode` and `decode`."""

from dataclasses import dataclass
from pathlib import Path

from aecli.configs import checks
from aecli.configs.checks import require
from aecli.configs.commands import (
    batch_size_option,
    model_option,
    overwrite_option,
    own_fit_option,
    own_image_size_option,
)  # fmt: skip
from aecli.configs.options import DATA, MODEL, OUTPUT, CheckedOptions, option
from aecli.configs.train import (
    SOURCE_HELP,
    background_option,
    device_option,
    precision_option,
    runs_option,
    workers_option,
)  # fmt: skip

_MOST_IN_SHARD = 100_000  # images


@dataclass(frozen=True)
class EncodeConfig(CheckedOptions):
    """`aecli encode`. Without `data`, the run's own images, all of them unless `split` says otherwise."""

    model: str = model_option()
    data: str | None = option(None, f"Images to encode. {SOURCE_HELP}", DATA, metavar="SOURCE", completes="source",
                              shown_default="the run's images")  # fmt: skip
    split: str | None = option(None, "Which of the images, by the run's own split.", DATA, choices=checks.SPLITS,
                               shown_default="all")  # fmt: skip
    background: str | None = background_option(None, shown_default="as trained")
    image_size: int | None = own_image_size_option()
    fit: str | None = own_fit_option()
    flip: bool = option(False, "Encode each image mirrored too; lightningdit always does.", DATA)
    labels: str = option(
        "folders", "What is an image's class: the first folder of its path, numbered in the order of the names; none.",
        DATA, choices=checks.LABELS,
    )  # fmt: skip
    out: Path | None = option(None, "Folder to write to; the same command goes on where it was stopped.", OUTPUT,
                              metavar="DIR", shown_default="latents/MODEL")  # fmt: skip
    format: str = option(
        "safetensors", "Shards of many images, a .npy an image, or what EDM2 or LightningDiT reads.", OUTPUT,
        choices=checks.LATENT_FORMATS,
    )  # fmt: skip
    dtype: str = option("fp32", "How latents are stored.", OUTPUT, choices=checks.LATENT_DTYPES)
    scaling_factor: float | None = option(
        None, "What latents of --format npy are multiplied by, where not 1 over the standard deviation of these.",
        OUTPUT, above=0, most=1e9, shown_default="the model's, or measured",
    )  # fmt: skip
    shard_size: int = option(1000, "Images a shard, after each of which the work is saved.", OUTPUT, least=1,
                             most=_MOST_IN_SHARD)  # fmt: skip
    runs: Path = runs_option()
    batch_size: int = batch_size_option()
    device: str = device_option()
    precision: str = precision_option()
    workers: int | None = workers_option()

    def _check_together(self) -> None:
        require(self.scaling_factor is None or self.format == "npy", "--scaling-factor", self.scaling_factor,
                "--format npy: the other formats hold latents as they are")  # fmt: skip


@dataclass(frozen=True)
class DecodeConfig(CheckedOptions):
    """`aecli decode`. `scaling_factor` and `shift` stand in for what the latents say of themselves."""

    model: str = model_option()
    latents: Path = option(
        ..., "Latents in any of encode's formats, with or without its index.json; or a .safetensors or .npy file.",
        DATA, metavar="DIR|FILE",
    )  # fmt: skip
    scaling_factor: float | None = option(
        None, "What the latents were multiplied by, which is undone.", MODEL, above=0, most=1e9,
        shown_default="as index.json says, or the model's for .npy",
    )  # fmt: skip
    shift: float | None = option(None, "What was subtracted before.", MODEL, least=-1e9, most=1e9,
                                 shown_default="likewise")  # fmt: skip
    out: Path | None = option(None, "Folder to write to.", OUTPUT, metavar="DIR", shown_default="decoded/MODEL")
    overwrite: bool = overwrite_option()
    runs: Path = runs_option()
    batch_size: int = batch_size_option()
    device: str = device_option()
    precision: str = precision_option()
    workers: int | None = workers_option()
