"""The options of `aecli train`, in sections, with their defaults and checks. On the command line they are flat."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

from aecli.configs.checks import (
    BEST_BY,
    COLOUR_PATTERN,
    COLOURS,
    COMPILE_MODES,
    LABELS,
    LARGEST_SIDE,
    LOGS,
    MOST_WORKERS,
    OPTIMIZERS,
    PERCEPTUAL_NETS,
    PIXEL_LOSSES,
    PRECISIONS,
    RANDOM_CROP,
    SCHEDULES,
    SYNC_MODES,
    TRAINED_PARTS,
    TRAINING_FITS,
    require,
)
from aecli.configs.options import (
    DATA,
    FREELY,
    MACHINE,
    MODEL,
    RECIPE,
    RUN,
    CheckedOptions,
    OptionField,
    brief_repr,
    option,
    option_fields,
    plain,
)
from aecli.errors import ConfigError

SOURCE_HELP = "A folder, a .zip of one, tar or Parquet shards, demo, torchvision:NAME or hf:NAME."
LARGEST_SEED = 2**63 - 1
GROWING = "to more; not with `--schedule cosine`"  # how the length of a run may change
RUN_MOVED = "to where the run is now"  # how the folders that name it may
MOVED = "to where the same images are now"  # how a source may


seed_option = partial(option, 0, "The seed of all randomness.", RUN, least=0, most=LARGEST_SEED)
runs_option = partial(option, Path("runs"), "The folder that holds the runs.", RUN, may_change=RUN_MOVED)
device_option = partial(
    option, "auto", "Where to compute; auto picks CUDA, then MPS, then the CPU.", MACHINE,
    metavar="auto|cpu|cuda|cuda:N|mps", completes="device", pattern=r"auto|cpu|mps|cuda(:\d+)?",
    expected="auto, cpu, mps, cuda or cuda:N", may_change=FREELY,
)  # fmt: skip
precision_option = partial(
    option, "auto", "Arithmetic; auto trains in bf16 if the hardware has fast bf16, and runs everything else in fp32.",
    MACHINE, choices=PRECISIONS,
)  # fmt: skip
background_option = partial(
    option, help="What transparency is laid over.", panel=DATA, metavar="white|black|#RRGGBB",
    pattern=COLOUR_PATTERN, expected=COLOURS,
)  # fmt: skip
workers_option = partial(
    option, None, "Threads that decode images.", MACHINE, metavar="INT", shown_default="as many as CPUs", least=1,
    most=MOST_WORKERS, may_change=FREELY,
)  # fmt: skip


@dataclass(frozen=True)
class DataConfig(CheckedOptions):
    """Which images, and how they are read."""

    source: str = option("demo", f"Images to train on. {SOURCE_HELP}", DATA, name="data", metavar="SOURCE",
                         completes="source", may_change=MOVED)  # fmt: skip
    val_source: str | None = option(None, "Images to validate on, instead of a split.", DATA, name="val_data",
                                    metavar="SOURCE", completes="source", may_change=MOVED)  # fmt: skip
    val_fraction: float = option(0.1, "Fraction of images held out for validation, chosen by a hash of the name.", DATA,
                                 least=0, below=1)  # fmt: skip
    image_size: int = option(256, "Side of the square images, in pixels.", DATA, least=1, most=LARGEST_SIDE)
    fit: str = option(
        "squash", "squash: resize both sides at once; crop: resize the short side, crop the middle; random-crop: train "
        "on a random piece of each picture, another one every epoch, and validate and use the model on whole pictures.",
        DATA, choices=TRAINING_FITS,
    )  # fmt: skip
    background: str = background_option("white")
    allow_changed_data: bool = option(
        False, "Resume a run although most of its images have changed.", DATA, may_change=FREELY
    )
    val_images: int = option(
        1000, "Take LPIPS of at most so many validation images an epoch, evenly spaced. With --fit random-crop, which "
        "validates on whole pictures, measure no more of them at all.", DATA, metavar="N", least=1,
    )  # fmt: skip
    skip_broken: bool = option(False, "Go on without images that can't be read, even if there are many.", DATA)
    flip: bool = option(False, "Mirror images at random (--no-flip: not, though a recipe does).", DATA, of_recipes=True)
    turns: bool = option(
        False, "Turn images by 0, 90, 180 or 270 degrees at random (--no-turns: not).", DATA, of_recipes=True
    )
    resized_crops: bool = option(
        False, "Train on square pieces of any scale, from --image-size to a picture's short side (log-uniform), at "
        "random places and resized to --image-size; validate as --fit says (--no-resized-crops: not).", DATA,
        of_recipes=True,
    )  # fmt: skip
    labels: str = option(
        "none", "What a prior learns beside latents. folders: an image's class, which is the first folder of its path.",
        DATA, choices=LABELS,
    )  # fmt: skip
    augment_above: float | None = option(
        None, "Turn and crop (--turns, --resized-crops) only if training takes each image more than so many times: "
        "that keeps few images from being learned by heart, and makes them less like what is validated on.", DATA,
        metavar="N", shown_default="always", least=0, most=1e9,
    )  # fmt: skip
    shuffle_buffer: int = option(4096, "Size of the shuffle buffer of a stream, in images.", DATA, least=1)
    cache: str = option("auto", "Where decoded images are kept: the user's cache folder, memory only, or a folder.",
                        DATA, metavar="auto|off|DIR", may_change=FREELY)  # fmt: skip

    @property
    def train_fit(self) -> str:
        """The `fit` that training images are decoded with: pieces are cut out of whole pictures."""
        return RANDOM_CROP if self.resized_crops else self.fit

    @property
    def augmentation(self) -> str:
        """What is done at random to training images, in words; "" for nothing."""
        kinds = {
            "flips": self.flip,
            "quarter turns": self.turns,
            "crops of any scale": self.resized_crops,
            "crops": self.train_fit == RANDOM_CROP and not self.resized_crops,
        }
        return ", ".join(kind for kind, is_on in kinds.items() if is_on)


@dataclass(frozen=True)
class ModelConfig(CheckedOptions):
    """Which model. `options` are its own (width, latent_dim, beta, …); one that it doesn't have is an error.

    `defaults` are a recipe's values for them, used only if the model has them; `autoencoder` is that of a prior.
    """

    name: str
    autoencoder: str | None = option(
        None, "The autoencoder whose latents a prior learns: a registry name, a run folder or a .safetensors file.",
        MODEL, flag="--model", metavar="MODEL", completes="model",
    )  # fmt: skip
    init: str | None = option(
        None, "Begin from trained weights: a registry name, a run folder, a .safetensors file, a diffusers folder or "
        "hf:ORG/NAME.", MODEL,
        metavar="MODEL", completes="model",
    )  # fmt: skip
    options: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def _check_together(self) -> None:
        is_name = isinstance(self.name, str) and self.name != "" and "\0" not in self.name
        require(is_name, "model", brief_repr(self.name), "a model's name")
        for name, shown in (("options", "options"), ("defaults", "model_defaults")):
            values = getattr(self, name)
            is_table = isinstance(values, Mapping) and all(isinstance(key, str) for key in values)
            require(is_table, shown, brief_repr(values), "a table of the model's options by name")
            object.__setattr__(self, name, {key: plain(value) for key, value in values.items()})


@dataclass(frozen=True)
class ObjectiveConfig(CheckedOptions):
    """What is minimised, beside the terms of the model's own; the defaults are the report's."""

    pixel_loss: str = option("mse", "The loss of pixels: squared, absolute, or absolute and smooth at 0.", RECIPE,
                             choices=PIXEL_LOSSES)  # fmt: skip
    perceptual_weight: float = option(0.0, "Weight of LPIPS in the loss.", RECIPE, least=0, example="0.1")
    perceptual_net: str = option("auto", "The network of that loss; auto: vgg where its weights are on this machine, "
                                 "else alex.", RECIPE, choices=PERCEPTUAL_NETS)  # fmt: skip
    ssim_weight: float = option(0.0, "Weight of 1 - SSIM in the loss.", RECIPE, least=0, example="0.1")
    adversarial_weight: float = option(0.0, "Weight of an adversarial loss: a PatchGAN with hinge loss and LeCam.",
                                       RECIPE, least=0, example="0.1")  # fmt: skip
    adversarial_start: int = option(1000, "Steps before the adversarial loss begins.", RECIPE, metavar="STEPS", least=0)
    adversarial_ramp: int = option(1000, "Steps within which it grows to its weight.", RECIPE, metavar="STEPS", least=0)


@dataclass(frozen=True)
class OptimizationConfig(CheckedOptions):
    """How long and with which steps; `steps` replaces `epochs`, `epoch_steps` is for a stream, which has no end."""

    epochs: int = option(1000, "Passes over the images; may grow on resume.", RECIPE, least=1, may_change=GROWING)
    steps: int | None = option(
        None, "Train for N steps instead of --epochs; required for a stream. May grow on resume.", RECIPE, metavar="N",
        least=1, may_change=GROWING,
    )  # fmt: skip
    epoch_steps: int = option(1000, "Steps of a stream between two validations.", RECIPE, least=1)
    batch_size: int = option(32, "Images per step, of all processes together.", RECIPE, least=1)
    optimizer: str = option("adam", "The optimizer; muon: PyTorch's, for kernels, and AdamW for the rest.", RECIPE,
                            choices=OPTIMIZERS)  # fmt: skip
    lr: float = option(1e-4, "Learning rate.", RECIPE, above=0)
    schedule: str = option(
        "plateau", "plateau: halve the rate when the train loss stalls for 10 epochs; cosine: fall to 0 at the end.",
        RECIPE, choices=SCHEDULES,
    )  # fmt: skip
    warmup: int = option(0, "Steps within which the rate rises from 0.", RECIPE, metavar="STEPS", least=0)
    weight_decay: float = option(0.0, "Weight decay: of all parameters under adam (L2), decoupled and of kernels alone "
                                 "under adamw and muon.", RECIPE, least=0, example="0.01")  # fmt: skip
    clip_norm: float | None = option(None, "Clip the gradients' norm to this.", RECIPE, metavar="NORM", above=0,
                                     example="1")  # fmt: skip
    train: str = option("all", "The parts of an autoencoder that are trained.", RECIPE, choices=TRAINED_PARTS)
    best_by: str = option("loss", "What model.safetensors is the best by, on the validation images.", RECIPE,
                          choices=BEST_BY)  # fmt: skip
    ema: float | None = option(None, "Validate and keep an exponential moving average of the weights.", RECIPE,
                               metavar="DECAY", above=0, below=1, example="0.999")  # fmt: skip
    patience: int | None = option(
        None, "Stop after N epochs without a better validation loss; may change on resume.", RECIPE, metavar="N",
        least=1, may_change="freely; a larger one continues a run that stopped early",
    )  # fmt: skip
    grad_accum: int = option(
        1, "Gradient accumulation: split each batch into K micro-batches, for the same step in less memory (batch "
        "statistics are per micro-batch).", MACHINE, metavar="K", least=1, hidden_flag="--accumulate",
        may_change=FREELY,
    )  # fmt: skip
    sync_batchnorm: str = option("auto", "Batch statistics over all processes; auto: on CUDA, the only device on which "
                                 "PyTorch can.", MACHINE, choices=SYNC_MODES, may_change=FREELY)  # fmt: skip

    def stops_early(self, epochs: int, best_epoch: int) -> bool:
        """Whether a run of so many finished epochs has had enough of them since its best one."""
        return self.patience is not None and epochs - best_epoch >= self.patience

    def passes(self, images: int) -> float:
        """Return how often the whole run takes each of so many images to train on."""
        return float(self.epochs) if self.steps is None else self.steps * self.batch_size / images

    def total_steps(self, batches: int) -> int:
        """Return the steps of the whole run, whose epochs have so many batches."""
        return self.epochs * batches if self.steps is None else self.steps


@dataclass(frozen=True)
class RunConfig(CheckedOptions):
    """The run folder, what is stored in it, and on which machine the run is computed."""

    out: Path | None = option(None, "This run folder and no other.", RUN, metavar="DIR",
                              shown_default="RUNS/MODEL, RUNS/MODEL-2, …", may_change=RUN_MOVED)  # fmt: skip
    runs: Path = runs_option()
    restart: bool = option(False, "Begin the run again, discarding what it saved.", RUN, may_change=FREELY)
    checkpoint_every: float = option(10.0, "Minutes between checkpoints: the most work that a power cut costs.", RUN,
                                     metavar="MINUTES", above=0, may_change=FREELY)  # fmt: skip
    log: str | None = option(None, "Write metrics, previews and options for TensorBoard into the run folder (extra: "
                             "tensorboard).", RUN, choices=LOGS, may_change=FREELY)  # fmt: skip
    seed: int = seed_option()
    deterministic: bool = option(False, "Use only deterministic algorithms.", RUN)
    device: str = device_option()
    precision: str = precision_option()
    compile: str = option("auto", "Compile the training step; auto: in runs long enough to save time.",
                          MACHINE, choices=COMPILE_MODES)  # fmt: skip
    workers: int | None = workers_option()


_SECTIONS: dict[str, type[Any]] = {
    "data": DataConfig, "model": ModelConfig, "objective": ObjectiveConfig, "optimization": OptimizationConfig,
    "run": RunConfig,
}  # fmt: skip
_PLAIN = {"model": ("model", "name"), "options": ("model", "options"), "model_defaults": ("model", "defaults")}
OLD_NAMES = {"accumulate": "grad_accum"}  # of options in older files


def train_options() -> tuple[OptionField, ...]:
    """Return the options of `aecli train`, in the order in which its help lists them."""
    return tuple(each for section in _SECTIONS.values() for each in option_fields(section))


@dataclass(frozen=True, init=False)
class TrainConfig:
    """`aecli train`, in sections; the defaults are the report's recipe.

    Its arguments are flat, as on the command line: `TrainConfig("vae", data="photos", epochs=2, options={"width": 8})`.
    """

    model: ModelConfig
    data: DataConfig
    objective: ObjectiveConfig
    optimization: OptimizationConfig
    run: RunConfig

    def __init__(self, model: str, data: object = "demo", **options: Any) -> None:
        """Put the options into sections and check them; `options` are the model's own.

        `data` and `val_data` are a source (text or a path) or images: an array uint8 (N, H, W, 3) or (N, H, W), a
        tensor uint8 (N, 3, H, W) or (N, H, W), a list of pictures (PIL images, such arrays or tensors without N) or of
        paths, or a map-style Dataset whose items are pictures, tuples that begin with one, or mappings with one as
        `image`. They are read one by one; a run resumes when images of the same content are given again.

        Raises:
            ConfigError: there is no such option, or its value is outside its type, choices or bounds.
        """
        known = _sections_of_options()
        values: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
        for name, value in {"model": model, "data": data, **options}.items():
            if name not in known:
                raise ConfigError(f"TrainConfig has no option {name!r}\nhint: one of {', '.join(sorted(known))}")
            section, key = known[name]
            values[section][key] = value
        for section, kind in _SECTIONS.items():
            object.__setattr__(self, section, kind(**values[section]))
        steps = self.optimization
        require(steps.grad_accum <= steps.batch_size, "--grad-accum", steps.grad_accum,
                f"at most --batch-size, which is {steps.batch_size}")  # fmt: skip

    def flat(self) -> dict[str, Any]:
        """Return every option by its flat name, as the constructor takes them."""
        return {name: getattr(getattr(self, section), key) for name, (section, key) in _sections_of_options().items()}

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some options changed, by their flat names."""
        return type(self)(**{**self.flat(), **changes})


def _sections_of_options() -> dict[str, tuple[str, str]]:
    """Return the section and field of each flat option."""
    found = {
        each.name: (section, each.field.name) for section, kind in _SECTIONS.items() for each in option_fields(kind)
    }
    return {**_PLAIN, **found}
