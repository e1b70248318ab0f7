"""One frozen dataclass a command: the single home of every default and of its checks."""

from aecli.configs.checks import (
    COMPILE_MODES,
    FEATURES,
    FITS,
    LARGEST_SIDE,
    LOGS,
    LPIPS_NETS,
    METRICS,
    MISMATCH_ACTIONS,
    MODEL_FLAGS,
    MOST_DRAWN,
    MOST_SAMPLES,
    MOST_WORKERS,
    PRECISIONS,
    PRIORS,
    SPLITS,
    SSIM_WINDOWS,
    SYNC_MODES,
    require,
)
from aecli.configs.commands import (
    EvalConfig,
    GridConfig,
    InterpolateConfig,
    ModelsConfig,
    ReconstructConfig,
    SampleConfig,
    TraverseConfig,
)
from aecli.configs.train import TrainConfig

__all__ = [
    "COMPILE_MODES", "EvalConfig", "FEATURES", "FITS", "GridConfig", "InterpolateConfig", "LARGEST_SIDE",
    "LOGS", "LPIPS_NETS", "METRICS", "MISMATCH_ACTIONS", "MODEL_FLAGS", "MOST_DRAWN", "MOST_SAMPLES",
    "MOST_WORKERS", "ModelsConfig", "PRECISIONS", "PRIORS", "ReconstructConfig", "SPLITS", "SSIM_WINDOWS",
    "SYNC_MODES", "SampleConfig", "TrainConfig", "TraverseConfig", "require",
]  # fmt: skip
