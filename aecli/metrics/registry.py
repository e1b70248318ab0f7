"""The metrics of `aecli eval`. A new metric is a file with a `build` function, and one line in `BUILDERS`.

Its name goes into `METRICS` of `aecli.configs.checks` as well, which `--help` and completion read without importing
torch; a test compares the two. Metrics of sets of images, such as FID, are in `set_metrics`.
"""

from collections.abc import Callable
from dataclasses import replace

from aecli.configs import EvalConfig
from aecli.metrics import lpips_choice, ms_ssim, psnr, ssim
from aecli.metrics.base import Images, LoadedMetric, Metric, Score
from aecli.progress import Listener


def _build_dists(config: EvalConfig) -> Metric:
    from aecli.metrics import dists  # imports PyTorch, which the others do without

    return dists.build(config)


BUILDERS: dict[str, Callable[[EvalConfig], Metric]] = {
    "psnr": psnr.build,
    "ssim": ssim.build,
    "lpips": lpips_choice.build,
    "ms-ssim": ms_ssim.build,
    "dists": _build_dists,
    "psnr-y": psnr.build_y,
    "ssim-y": ssim.build_y,
}


def build_metrics(config: EvalConfig) -> tuple[Metric, ...]:
    """Describe the metrics of images that `config` asks for, each once, without the border that it leaves out."""
    metrics = (BUILDERS[name](config) for name in dict.fromkeys(config.metrics) if name in BUILDERS)
    return tuple(_cropped(metric, config.crop_border) if config.crop_border else metric for metric in metrics)


def _cropped(metric: Metric, border: int) -> Metric:
    """The metric of images without `border` pixels on each side."""

    def crop(images: Images) -> Images:
        return images[..., border:-border, border:-border]

    def load(device: str, listen: Listener) -> LoadedMetric:
        loaded = metric.load(device, listen)

        def against(references: Images) -> Score:
            score = loaded.against(crop(references))
            return lambda predictions: score(crop(predictions))

        return replace(loaded, against=against)

    pixels = f"{border} pixel{'s' if border > 1 else ''}"
    definition = f"{metric.definition} Before that, {pixels} of both images are cut off on each side."
    return replace(metric, min_side=metric.min_side + 2 * border, definition=definition, load=load)
