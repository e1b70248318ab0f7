"""Checks of option values and the choices there are. Only the standard library: every `--help` imports this."""

import re

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


def require_count(flag: str, value: int | None, least: int = 1) -> None:
    """Refuse what is no whole number of at least `least`; None is no number given."""
    is_count = value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= least)
    require(is_count, flag, value, f"a whole number of at least {least}")


def require_workers(value: int | None) -> None:
    """Refuse what is no number of threads."""
    require_count("--workers", value)
    require(value is None or value <= MOST_WORKERS, "--workers", value, f"at most {MOST_WORKERS}")


def require_choice(flag: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse what is none of `choices`."""
    require(value in choices, flag, value, f"one of {', '.join(choices)}")


def require_device(value: str) -> None:
    """Refuse what names no device; whether it is here is found out later."""
    known = isinstance(value, str) and re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value)
    require(bool(known), "--device", value, "auto, cpu, mps, cuda or cuda:N")


def require_seed(value: int) -> None:
    """Refuse what is no seed."""
    require(isinstance(value, int) and 0 <= value < 2**63, "--seed", value, "a whole number from 0 to 2^63 - 1")


def is_number(value: object) -> bool:
    """Whether it is a number, and not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)
