"""What `aecli train` takes, in sections, with every default and check. On the command line the options are flat."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from aecli.configs.checks import COMPILE_MODES, FITS, LARGEST_SIDE, LOGS, MOST_WORKERS, PRECISIONS, SYNC_MODES
from aecli.configs.options import DATA, MACHINE, MODEL, RECIPE, RUN, CheckedOptions, OptionField, option, option_fields
from aecli.errors import ConfigError

SOURCE_HELP = "A folder, a .zip of one, tar or Parquet shards, demo, torchvision:NAME or hf:NAME."
LARGEST_SEED = 2**63 - 1


def seed_option() -> Any:
    """Return the field of `--seed`."""
    return option(0, "Where all randomness comes from.", RUN, least=0, most=LARGEST_SEED)


def runs_option() -> Any:
    """Return the field of `--runs`."""
    return option(Path("runs"), "The folder that holds the runs.", RUN)


def device_option() -> Any:
    """Return the field of `--device`."""
    return option("auto", "Where to compute; auto picks CUDA, then MPS, then the CPU.", MACHINE,
                  metavar="auto|cpu|cuda|cuda:N|mps", completes="device", pattern=r"auto|cpu|mps|cuda(:\d+)?",
                  expected="auto, cpu, mps, cuda or cuda:N")  # fmt: skip


def precision_option() -> Any:
    """Return the field of `--precision`."""
    return option("auto", "Arithmetic; auto trains in bf16 where the hardware multiplies it fast, and runs everything "
                  "else in fp32.", MACHINE, choices=PRECISIONS)  # fmt: skip


def workers_option() -> Any:
    """Return the field of `--workers`."""
    return option(None, "Threads that decode images.", MACHINE, metavar="INT", shown_default="as many as CPUs",
                  least=1, most=MOST_WORKERS)  # fmt: skip


@dataclass(frozen=True)
class DataConfig(CheckedOptions):
    """Which images, and how they are read."""

    source: str = option("demo", f"Images to train on. {SOURCE_HELP}", DATA, name="data", metavar="SOURCE",
                         completes="source")  # fmt: skip
    val_source: str | None = option(None, "Images to validate on, in place of a split.", DATA, name="val_data",
                                    metavar="SOURCE", completes="source")  # fmt: skip
    val_fraction: float = option(0.1, "The fraction of images held out for validation, chosen by their names.", DATA,
                                 least=0, below=1)  # fmt: skip
    image_size: int = option(256, "Side of the square images, in pixels.", DATA, least=1, most=LARGEST_SIDE)
    fit: str = option("squash", "Resize both sides at once, or the short side and crop the middle.", DATA, choices=FITS)
    flip: bool = option(False, "Mirror images at random.", DATA)
    shuffle_buffer: int = option(4096, "Images of a stream that are shuffled at a time.", DATA, least=1)
    cache: str = option("auto", "Where decoded images are kept: the user's cache folder, memory only, or a folder.",
                        DATA, metavar="auto|off|DIR")  # fmt: skip


@dataclass(frozen=True)
class ModelConfig(CheckedOptions):
    """Which model. `options` are its own (width, latent_dim, beta, …), refused by name where it has no such option.

    `defaults` are a recipe's values for them, used only where the model has them; `autoencoder` is the one whose
    latents a prior learns.
    """

    name: str
    autoencoder: str | None = option(
        None, "The autoencoder whose latents a prior learns: a registry name, a run folder or a .safetensors file.",
        MODEL, flag="--model", metavar="MODEL", completes="model",
    )  # fmt: skip
    options: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OptimizationConfig(CheckedOptions):
    """How long and by which steps; `steps` in place of `epochs`, `epoch_steps` for a stream, which has no end."""

    epochs: int = option(1000, "Passes over the images; may grow on resume.", RECIPE, least=1)
    steps: int | None = option(
        None, "Train so many steps in place of epochs; a stream has no others. May grow on resume.", RECIPE,
        metavar="N", least=1,
    )  # fmt: skip
    epoch_steps: int = option(1000, "Of a stream, the steps between two validations.", RECIPE, least=1)
    batch_size: int = option(32, "Images a step, of all processes together.", RECIPE, least=1)
    lr: float = option(1e-4, "Adam's learning rate; halved when the train loss stalls for 10 epochs.", RECIPE, above=0)
    ema: float | None = option(None, "Validate and keep an exponential moving average of the weights.", RECIPE,
                               metavar="DECAY", above=0, below=1, example="0.999")  # fmt: skip
    patience: int | None = option(None, "Stop after N epochs without a better validation loss.", RECIPE, metavar="N",
                                  least=1)  # fmt: skip
    grad_accum: int = option(
        1, "Gradient accumulation: take each batch in K micro-batches, for the same step in less memory (batch "
        "statistics are each micro-batch's own).", MACHINE, metavar="K", least=1, hidden_flag="--accumulate",
    )  # fmt: skip
    sync_batchnorm: str = option("auto", "Take batch statistics over all processes; auto does on CUDA, the one device "
                                 "for which PyTorch can.", MACHINE, choices=SYNC_MODES)  # fmt: skip


@dataclass(frozen=True)
class RunConfig(CheckedOptions):
    """Where the run lies, what is kept of it, and on which machine it is computed."""

    out: Path | None = option(None, "This run folder and no other.", RUN, metavar="DIR",
                              shown_default="RUNS/MODEL, RUNS/MODEL-2, …")  # fmt: skip
    runs: Path = runs_option()
    restart: bool = option(False, "Begin the run again, dropping what it saved.", RUN)
    checkpoint_every: float = option(10.0, "Minutes between checkpoints: the most work that a power cut costs.", RUN,
                                     metavar="MINUTES", above=0)  # fmt: skip
    log: str | None = option(None, "Write numbers, pictures and options for TensorBoard into the run folder (extra: "
                             "tensorboard).", RUN, choices=LOGS)  # fmt: skip
    seed: int = seed_option()
    deterministic: bool = option(False, "Allow only algorithms that give the same bits twice.", RUN)
    device: str = device_option()
    precision: str = precision_option()
    compile: str = option("auto", "Compile the training step; auto does in runs long enough to earn the time back.",
                          MACHINE, choices=COMPILE_MODES)  # fmt: skip
    workers: int | None = workers_option()


_SECTIONS: dict[str, type[Any]] = {
    "data": DataConfig, "model": ModelConfig, "optimization": OptimizationConfig, "run": RunConfig,
}  # fmt: skip
_PLAIN = {"model": ("model", "name"), "options": ("model", "options"), "model_defaults": ("model", "defaults")}
OLD_NAMES = {"accumulate": "grad_accum"}  # of options in older files


def train_options() -> tuple[OptionField, ...]:
    """Return the options of `aecli train`, in the order in which its help lists them."""
    return tuple(each for section in _SECTIONS.values() for each in option_fields(section))


@dataclass(frozen=True, init=False)
class TrainConfig:
    """`aecli train`, in sections. The defaults are the report's recipe, to the letter.

    It is made of flat options, as the command line is: `TrainConfig("vae", data="photos", epochs=2, options={"width":
    8})`; `options` are the model's own.
    """

    model: ModelConfig
    data: DataConfig
    optimization: OptimizationConfig
    run: RunConfig

    def __init__(self, model: str, data: str | Path = "demo", **options: Any) -> None:
        """Sort the options into sections and check them.

        Raises:
            ConfigError: there is no such option, or its value is outside its type, choices or bounds.
        """
        places = _places()
        sorted_in: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
        for name, value in {"model": model, "data": data, **options}.items():
            if name not in places:
                raise ConfigError(f"TrainConfig has no option {name!r}\nhint: one of {', '.join(sorted(places))}")
            section, key = places[name]
            sorted_in[section][key] = value
        for section, kind in _SECTIONS.items():
            object.__setattr__(self, section, kind(**sorted_in[section]))
        if self.optimization.grad_accum > self.optimization.batch_size:
            raise ConfigError(f"--grad-accum {self.optimization.grad_accum}: expected at most --batch-size, which is "
                              f"{self.optimization.batch_size}")  # fmt: skip

    def flat(self) -> dict[str, Any]:
        """Return every option by its flat name, as the constructor takes them."""
        return {name: getattr(getattr(self, section), key) for name, (section, key) in _places().items()}

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some options changed, by their flat names."""
        return type(self)(**{**self.flat(), **changes})


def _places() -> dict[str, tuple[str, str]]:
    """Return where each flat option lies: its section and field."""
    found = {
        each.name: (section, each.field.name) for section, kind in _SECTIONS.items() for each in option_fields(kind)
    }
    return {**_PLAIN, **found}
