"""The metrics of `aecli eval`. A new metric is a file with a `build` function, and one line in `BUILDERS`.

Its name goes into `METRICS` of `aecli.configs.checks` as well, which `--help` and completion read without importing
torch; a test compares the two.
"""

from collections.abc import Callable

from aecli.configs import EvalConfig
from aecli.metrics import lpips, psnr, ssim
from aecli.metrics.base import Metric

BUILDERS: dict[str, Callable[[EvalConfig], Metric]] = {"psnr": psnr.build, "ssim": ssim.build, "lpips": lpips.build}
