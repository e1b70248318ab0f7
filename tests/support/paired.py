"""Crops of photographs in folders, and `eval` of them in this process."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from skimage.data import astronaut, coffee
from skimage.metrics import structural_similarity

from aecli.configs import EvalConfig
from aecli.evaluation.paired import evaluate
from aecli.evaluation.report import EvalReport
from aecli.progress import Listener, ignore

PHOTO = np.concatenate([astronaut()[:400, :400], coffee()[:400, :400]], axis=1)


def crop(index: int, height: int = 64, width: int = 72) -> np.ndarray:
    top, left = 37 * index % 300, 101 * index % 700
    return PHOTO[top : top + height, left : left + width]


def compare(folder: Path, *pred: str, listen: Listener = ignore, **options: Any) -> EvalReport:
    """Compare folders in `folder` with its `gt`."""
    predictions = tuple(f"{name}={folder / name}" for name in pred)
    return evaluate(EvalConfig(str(folder / "gt"), predictions, **{"workers": 2, "device": "cpu"} | options), listen)


def compare_json(folder: Path, *pred: str, **options: Any) -> Any:
    """The report as strict JSON."""
    return json.loads(json.dumps(compare(folder, *pred, **options).to_json(), allow_nan=False))


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def ssim_by_hand(a: np.ndarray, b: np.ndarray) -> float:
    return structural_similarity(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=-1
    )
