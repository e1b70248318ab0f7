"""Compares every prior of one model: a table of sample quality, and a sheet of samples.

    python examples/priors.py MODEL REAL TRAIN OUT [N]

MODEL is a run folder; run `aecli train prior --model MODEL` first to include a flow. REAL are images that nothing was
trained on, TRAIN those that the model was trained on. N samples of each prior (default 1000) are written under OUT,
with the model's reconstructions of REAL, the upper bound for its samples.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import aecli
from aecli.configs import EvalConfig
from aecli.errors import AecliError
from aecli.evaluation.sets import evaluate_sets
from aecli.figures.grid import draw_rows
from aecli.inference.reconstruct import ReconstructConfig, reconstruct

PRIORS: dict[str, dict[str, Any]] = {  # names in the table, with the arguments of `Model.sample`
    "normal": {"prior": "normal"},
    "gaussian": {"prior": "gaussian"},
    "mixture": {"prior": "mixture"},
    "flow": {"prior": "flow"},
    "flow-0.92": {"prior": "flow", "temperature": 0.92},
    "flow-guided": {"prior": "flow", "temperature": 1.01, "guidance": 1.7, "steps": 25},
}
SHOWN = 10


def draw(model: "aecli.Model", arguments: dict[str, Any], out: Path, n: int) -> float | None:
    """Write `n` samples to a folder; return seconds an image, or None if the model has no such prior."""
    try:
        model.sample(1, **arguments)  # fits the prior on first use, which is not timed
        start = time.monotonic()
        samples = model.sample(n, **arguments)
    except AecliError as error:
        print(f"no {out.name}: {str(error).splitlines()[0]}", file=sys.stderr)
        return None
    seconds = (time.monotonic() - start) / n
    out.mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(samples):
        picture.save(out / f"{index:06d}.png")
    return seconds


def show(model_path: str, real: str, train: str, out: Path, n: int) -> str:
    """Sample, measure, write OUT/priors.png, and return the table as Markdown."""
    model = aecli.load(model_path)
    seconds = {name: draw(model, arguments, out / name, n) for name, arguments in PRIORS.items()}
    there = [name for name in PRIORS if seconds[name] is not None]
    reconstruct(ReconstructConfig(model_path, data=real, out=out / "reconstructions", overwrite=True))
    named = tuple(f"{name}={out / name}" for name in (*there, "reconstructions"))
    report = evaluate_sets(EvalConfig(gt=real, samples=named, train=train))
    heads = ["prior", f"{report.kernel_name} ↓", f"{report.frechet_name} ↓", "precision", "coverage ↑", "nearest",
             "s/image"]  # fmt: skip
    rows = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for result in report.results:
        low, high = result.ci95
        took = seconds.get(result.name)
        cells = [
            result.name,
            f"{result.kernel_distance:.4f} [{low:.4f}, {high:.4f}]",
            f"{result.frechet_distance:.2f}",
            f"{result.manifold.precision:.3f}",
            f"{result.manifold.coverage:.3f}",
            f"{result.memorised.ratio:.2f}" if result.memorised and result.memorised.ratio else "–",
            f"{took:.4f}" if took is not None else "–",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    sheet = []
    for name in (*there, "reconstructions"):
        files = sorted((out / name).rglob("*.png"))[:SHOWN]
        sheet.append((name, [np.asarray(Image.open(file).convert("RGB")) for file in files]))
    draw_rows(sheet).save(out / "priors.png")
    return "\n".join(rows)


if __name__ == "__main__":
    if len(sys.argv) not in (5, 6):
        sys.exit(__doc__)
    print(show(*sys.argv[1:4], Path(sys.argv[4]), int(sys.argv[5]) if len(sys.argv) > 5 else 1000))
