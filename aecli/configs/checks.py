"""Checks of option values and the choices there are. Only the standard library: every `--help` imports this."""

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
