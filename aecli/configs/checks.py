"""The choices and limits of options. Only the standard library: every `--help` imports this."""

import re

from aecli.errors import ConfigError

COLOUR_PATTERN, COLOURS = "white|black|#[0-9a-fA-F]{6}", "white, black or #RRGGBB"
# How predictions are named: text around one field, which is the name, its number padded anew, or the name with suffix.
TEMPLATE_FIELD, TEMPLATES = (
    r"\{(?:|:d|:0[1-9]d|name)\}",
    "text with one of {}, {:d}, {:04d} or {name}, such as '{}_rec'",
)
FITS = ("squash", "crop")
RANDOM_CROP = "random-crop"  # of training alone: whole pictures otherwise
TRAINING_FITS = (*FITS, RANDOM_CROP)
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
LOGS = ("tensorboard",)
TRAINED_PRIORS = ("flow", "autoregressive")
PRIORS = ("auto", "normal", "gaussian", "mixture", *TRAINED_PRIORS)
COMPILE_MODES = ("auto", "on", "off")
SYNC_MODES = ("auto", "on", "off")
PIXEL_LOSSES = ("mse", "l1", "charbonnier")
PERCEPTUAL_NETS = ("auto", "alex", "vgg")
OPTIMIZERS = ("adam", "adamw", "muon")
SCHEDULES = ("plateau", "constant", "cosine")
BEST_BY = ("loss", "psnr", "lpips")
BOTTLENECKS = ("none", "kl", "fsq", "vq")  # of the residual autoencoder
DISTANCES = ("euclidean", "cosine")  # of codes
WHITENINGS = ("common", "component")  # of a flow's principal channels
BASES = ("none", "gaussian")  # of a flow's velocity
TRAINED_PARTS = ("all", "decoder")
SPLITS = ("all", "train", "val")
DEFAULT_METRICS = ("psnr", "ssim", "lpips")
IMAGE_METRICS = (*DEFAULT_METRICS, "ms-ssim", "dists", "psnr-y", "ssim-y")
SET_METRICS = ("fid", "kid", "fd-alex", "kd-alex")  # of all images together
METRICS = (*IMAGE_METRICS, *SET_METRICS)
TABLE_FORMATS = ("text", "markdown", "latex", "csv")
EXPORT_FORMATS = ("diffusers", "onnx", "torch")
LPIPS_NETS = ("alex", "vgg", "squeeze")
FEATURES = ("auto", "inception", "alex")
SSIM_WINDOWS = ("gaussian", "uniform")
LATENT_FORMATS = ("safetensors", "npy", "edm2", "lightningdit")
LATENT_DTYPES = ("fp32", "fp16")
LABELS = ("folders", "none")
MISMATCH_ACTIONS = ("error", "skip", "resize", "crop")
MODEL_FLAGS = {"width": "--width", "latent_dim": "--latent-dim", "beta": "--beta"}  # of model options
LARGEST_SIDE = 2**14  # pixels of a square image; decoding has the same limit
MOST_WORKERS = 1024
MOST_DRAWN = 1024  # images on a sheet, or in a row of a grid
MOST_SAMPLES = 1_000_000  # files with names of six digits


def model_flag(name: str) -> str:
    """Return how a model's option is typed: by a flag of its own, or by `--option`."""
    return MODEL_FLAGS.get(name, f"--option {name}")


def is_template(text: str) -> bool:
    """Whether a text names predictions after the ground truth: see `split_template`; there are no other braces."""
    return all(
        len(re.findall(TEMPLATE_FIELD, part)) == 1 and not set(re.sub(TEMPLATE_FIELD, "", part)) & set("{}")
        for part in split_template(text)
    )


def split_template(text: str) -> tuple[str, str]:
    """Return how names of the ground truth, and of predictions, are made: of `gt_{}=pred_{}`, or of `{}_rec` alone."""
    truth, equals, prediction = text.partition("=")
    return (truth, prediction) if equals and "{}" in truth else ("{}", text)


def is_colour(value: object) -> bool:
    """Whether a value is what `--background` takes."""
    return isinstance(value, str) and re.fullmatch(COLOUR_PATTERN, value) is not None


def require(condition: bool, flag: str, value: object, expected: str) -> None:
    """Raise a ConfigError that names `flag` and `value` unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{flag} {value}: expected {expected}")
