"""The choices and limits of options. Only the standard library: every `--help` imports this."""

from aecli.errors import ConfigError

COLOUR_PATTERN, COLOURS = "white|black|#[0-9a-fA-F]{6}", "white, black or #RRGGBB"
FITS = ("squash", "crop")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
LOGS = ("tensorboard",)
PRIORS = ("auto", "normal", "gaussian", "mixture", "flow")
COMPILE_MODES = ("auto", "on", "off")
SYNC_MODES = ("auto", "on", "off")
SPLITS = ("all", "train", "val")
METRICS = ("psnr", "ssim", "lpips")
LPIPS_NETS = ("alex", "vgg", "squeeze")
FEATURES = ("auto", "inception", "alex")
SSIM_WINDOWS = ("gaussian", "uniform")
MISMATCH_ACTIONS = ("error", "skip", "resize")
MODEL_FLAGS = {"width": "--width", "latent_dim": "--latent-dim", "beta": "--beta"}  # of model options
LARGEST_SIDE = 2**14  # pixels of a square image; decoding has the same limit
MOST_WORKERS = 1024
MOST_DRAWN = 1024  # images on a sheet, or in a row of a grid
MOST_SAMPLES = 1_000_000  # files with names of six digits


def require(condition: bool, flag: str, value: object, expected: str) -> None:
    """Raise a ConfigError that names `flag` and `value` unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{flag} {value}: expected {expected}")
