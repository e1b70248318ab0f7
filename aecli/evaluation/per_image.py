"""The values of every image, as the CSV or JSON file of `--per-image`."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aecli.configs.checks import DEFAULT_METRICS

# A metric's name -> its values, float64 (images, predictions).
MetricValues = Mapping[str, NDArray[np.float64]]


def with_defaults(metrics: Iterable[str]) -> tuple[str, ...]:
    """The default metrics, and others that were asked for."""
    return tuple(dict.fromkeys([*DEFAULT_METRICS, *metrics]))


def per_image_file(path: Path, images: Sequence[str], predictions: Sequence[str], values: MetricValues) -> bytes:
    """The content of `path`, a .json or .csv file, with a row per image and prediction, in that order."""
    write = _json if path.suffix.lower() == ".json" else _csv
    return write(images, predictions, values)


def _json(images: Sequence[str], predictions: Sequence[str], values: MetricValues) -> bytes:
    """Objects of name, prediction and each metric asked for; null for the infinite PSNR of identical images."""
    rows = [
        {"name": image, "prediction": prediction} | {name: finite(float(table[i, j])) for name, table in values.items()}
        for i, image in enumerate(images)
        for j, prediction in enumerate(predictions)
    ]
    return (json.dumps(rows, indent=1, allow_nan=False) + "\n").encode()


def finite(value: float) -> float | None:
    """Return a value as JSON has it: None for infinity."""
    return value if math.isfinite(value) else None


def _csv(images: Sequence[str], predictions: Sequence[str], values: MetricValues) -> bytes:
    """Columns name, prediction, and a metric each (empty where not asked for)."""
    metrics = with_defaults(values)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)  # readers take a bare \r for a line end
    rows.writerow(["name", "prediction", *metrics])
    for i, image in enumerate(images):
        for j, prediction in enumerate(predictions):
            cells = [repr(float(values[name][i, j])) if name in values else "" for name in metrics]
            (quoted if "\r" in image + prediction else rows).writerow([image, prediction, *cells])
    # File names may be bytes of no encoding; they are written as they are.
    return text.getvalue().encode("utf-8", "surrogateescape")
