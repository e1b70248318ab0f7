"""Images ranked by how badly a model reconstructs them: what it has not learnt to draw is out of the ordinary."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aecli.configs import EvalConfig, ScoreConfig
from aecli.data.sources.registry import list_images
from aecli.errors import DataError, message_of
from aecli.figures.grid import draw_rows
from aecli.figures.png import png_bytes
from aecli.inference.loaded_model import load_model
from aecli.inference.model_predictions import evaluate_models
from aecli.metrics.auroc import RESAMPLES, Auroc, auroc
from aecli.metrics.psnr import PEAK
from aecli.progress import Listener, ignore
from aecli.runtime.launch import launch
from aecli.storage.outputs import check_writable_file, write_output

DRAWN = 10  # images in the picture


@dataclass(frozen=True)
class ImageScore:
    """An image's reconstruction error (0 to 255²), PSNR (dB, infinite for an error of 0) and LPIPS.

    `label` is the folder that it stands in, empty without labels.
    """

    name: str
    label: str
    mse: float
    psnr: float
    lpips: float

    def to_json(self) -> dict[str, Any]:
        """Strict JSON: null for the infinite PSNR."""
        return asdict(self) | {"psnr": self.psnr if math.isfinite(self.psnr) else None}


@dataclass(frozen=True)
class ScoreReport:
    """Images ranked by `by`, the worst reconstructed first, and by score how well it finds what is not normal."""

    model: str
    by: str
    images: tuple[ImageScore, ...]
    auroc: Mapping[str, Auroc]
    definitions: Mapping[str, str]
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Strict JSON."""
        return {
            "model": self.model,
            "by": self.by,
            "n": len(self.images),
            "auroc": {name: asdict(found) for name, found in self.auroc.items()} or None,
            "images": [each.to_json() for each in self.images],
            "definitions": dict(self.definitions),
            "versions": dict(self.versions),
        }


def score_images(config: ScoreConfig, listen: Listener = ignore) -> ScoreReport:
    """Reconstruct images in memory, measure each, and rank them.

    Raises:
        CheckpointError, ModelError: the model can't be found, read or built.
        DataError: an image can't be read (unless `--on-mismatch skip`), or the labels don't make two groups.
        OutputError: the file or the picture can't be written.
        AecliError: as `evaluate_models`.
    """
    for flag, path in (("--out", config.out), ("--picture", config.picture)):
        if path is not None and not launch().rank:
            check_writable_file(path, flag)
    measured = evaluate_models(
        EvalConfig(
            config.data, models=(config.model,), metrics=("psnr", "lpips"), on_mismatch=config.on_mismatch,
            image_size=config.image_size, fit=config.fit, background=config.background, runs=config.runs,
            batch_size=config.batch_size, workers=config.workers, device=config.device, precision=config.precision,
        ),
        listen,
    )  # fmt: skip
    psnr, lpips = (measured.values[name][:, 0] for name in ("psnr", "lpips"))
    images = [
        ImageScore(name, _label(name) if config.labels else "", mse, float(decibels), float(distance))
        for name, mse, decibels, distance in zip(
            measured.images, (PEAK**2 * 10 ** (-psnr / 10)).tolist(), psnr, lpips, strict=True
        )
    ]
    ranked = sorted(images, key=lambda each: (-getattr(each, config.by), each.name))
    found = _auroc(config.normal, images) if config.normal is not None else {}
    definitions = dict(measured.definitions)
    definitions["mse"] = "255² · 10^(-PSNR/10), the mean squared error over pixels and RGB channels of 8 bits."
    if found:
        definitions["auroc"] = (
            f"Probability that an image outside {config.normal} has the higher score than one in it, ties half; 95% "
            f"percentile bootstrap interval, both groups resampled apart, {RESAMPLES:,} resamples, fixed seed."
        )
    report = ScoreReport(measured.results[0].name, config.by, tuple(ranked), found, definitions, measured.versions)
    if not launch().rank:
        if config.out is not None:
            write_output(config.out, _file(config.out, ranked), listen)
        if config.picture is not None:
            write_output(config.picture, _picture(config, ranked[:DRAWN]), listen)
    return report


def _label(name: str) -> str:
    """The first folder of an image's relative path; empty for one outside of folders."""
    return name.partition("/")[0] if "/" in name else ""


def _auroc(normal: str, images: Sequence[ImageScore]) -> dict[str, Auroc]:
    labels = sorted({each.label for each in images})
    if normal not in labels or len(labels) < 2:
        folders = message_of(", ".join(filter(None, labels))) or "none"
        raise DataError(
            f"--normal {normal}: expected one of several folders of --data, which has {folders}\n"
            "hint: --data holds a folder of normal images, and others of anomalies"
        )
    scores = {}
    for score in ("mse", "lpips"):
        ordinary, others = (
            np.array([getattr(each, score) for each in images if (each.label == normal) == is_normal])
            for is_normal in (True, False)
        )
        scores[score] = auroc(ordinary, others)
    return scores


def _file(path: Path, ranked: Sequence[ImageScore]) -> bytes:
    """The content of a .json or .csv file with a row an image, in the order of the ranking."""
    if path.suffix.lower() == ".json":
        return (json.dumps([each.to_json() for each in ranked], indent=1, allow_nan=False) + "\n").encode()
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["rank", "name", "label", "mse", "psnr", "lpips"])
    rows.writerows([rank, *asdict(each).values()] for rank, each in enumerate(ranked, start=1))
    return text.getvalue().encode("utf-8", "surrogateescape")


def _picture(config: ScoreConfig, worst: Sequence[ImageScore]) -> bytes:
    """A row of the worst images above one of their reconstructions."""
    loaded = load_model(config.model, config.runs, config.device, config.precision, ignore, config.image_size,
                        config.fit, config.background)  # fmt: skip
    by_name = {image.name: image for image in list_images(config.data, ignore)}
    images = [loaded.read_image(by_name[each.name]).pixels for each in worst]
    made = [loaded.reconstruct(pixels.transpose(2, 0, 1)[None])[0].transpose(1, 2, 0) for pixels in images]
    heads = [f"{getattr(each, config.by):.4g}" for each in worst]
    return png_bytes(draw_rows([("Image", images), ("Reconstruction", made)], heads=heads))
