"""What the values of an evaluation mean: one exact sentence for everything that they depend on."""

from collections.abc import Mapping, Sequence

from aecli.configs import EvalConfig
from aecli.evaluation.measuring import Measured
from aecli.metrics.base import Metric
from aecli.metrics.statistics import CONFIDENCE, RESAMPLES


def definitions(
    metrics: Sequence[Metric],
    of_sets: Mapping[str, str],
    names: Sequence[str],
    measured: Measured,
    config: EvalConfig,
) -> dict[str, str]:
    """Return the definitions of the metrics, of how their values are summarized, and of how images were read.

    `of_sets` are those of metrics of sets.
    """
    found = {metric.name: metric.definition for metric in metrics} | dict(of_sets)
    found["ci95"] = (
        f"{CONFIDENCE:.0%} percentile bootstrap interval of the mean over images, {RESAMPLES:,} resamples, fixed seed."
    )
    if len(names) > 1:
        found["comparisons"] = (
            "For predictions a and b on the same images: the mean of a - b with its interval by the same bootstrap, "
            "and on how many images each is the better one."
        )
    found["reading"] = reading(config.truth_background)
    return found | _models(config) | _depth(measured, config) | _sizes(names, measured, config)


def reading(background: str) -> str:
    """Say what reading does to any image."""
    return (
        f"Transparency is laid over {background}; images are turned as EXIF says; of several frames the first is read; "
        "colour profiles are not applied; grey is repeated in all three channels."
    )


def _models(config: EvalConfig) -> dict[str, str]:
    found = {}
    if config.models:
        found["models"] = (
            "Reconstructions are rounded to 8 bits, as in files. Images a second: the median batch's on all workers "
            "together, without reading and measuring."
        )
    if config.floor:
        found["floor"] = (
            "pca 1/N is the PCA of patches that keeps as many numbers of an image as the models above it, fitted to "
            "the training images of their run."
        )
    return found


def _depth(measured: Measured, config: EvalConfig) -> dict[str, str]:
    deep, pairs = measured.counts.deep, len(measured.pairs)
    if not deep:
        return {}
    scale = "257" if config.data_range is None else f"{config.data_range}/255"
    sentence = (
        f"In {deep} of {pairs} pairs an image has more than 8 bits: PSNR and SSIM are of its unrounded values, divided "
        f"by {scale} to the scale of 8 bits (peak {config.data_range or 65535}); LPIPS is of those rounded."
    )
    return {"depth": sentence}


def _sizes(names: Sequence[str], measured: Measured, config: EvalConfig) -> dict[str, str]:
    pairs, found = measured.pairs.values(), {}
    read = len(next(iter(pairs)).predictions)  # the others are made, of the ground truth's size
    if fitted := sum(pair.resized[0] for pair in pairs):
        found["image_size"] = (
            f"The ground truth was brought to {config.image_size}x{config.image_size} by --fit {config.truth_fit} "
            f"(bilinear, antialiased, 8 bits): {fitted} of {len(pairs)}."
        )
    resized = {name: sum(pair.resized[1 + column] for pair in pairs) for column, name in enumerate(names[:read])}
    if any(resized.values()):
        counts = ", ".join(f"{count} of {len(pairs)} of {name}" for name, count in resized.items() if count)
        found["resize"] = (
            f"Resized to the ground truth's size before measuring (bicubic, antialiased, 8 bits): {counts}."
        )
    if cropped := sum(pair.cropped for pair in pairs):
        found["crop"] = f"Cut to the common size of each pair, from the top left: {cropped} of {len(pairs)}."
    return found
