"""Peak memory of `train`, `eval`, `reconstruct` and `encode` at several sizes: whole processes, imports included.

    python -m tests.benchmarks.memory [--model resnet --sizes 64,256,1024 --batch-size 4] [--json]

Training takes two steps; the others take their own batches, of more images than they keep at once. `--large 0` leaves
out the photographs of 4,000 × 3,000 pixels.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from tests.benchmarks.common import aligned, arguments, machine, run
from tests.benchmarks.pictures import write_photographs

COMMANDS = ("train", "eval", "reconstruct", "encode")
LARGE = (4000, 3000)


def main() -> None:
    """Measure and print."""
    options = arguments(
        __doc__ or "",
        model=("resnet", "to train and use"),
        sizes=("64,256,1024", "sides of the images"),
        batch_size=(4, "images of a training step"),
        large=(4, "pairs of 4,000 x 3,000 pixels to measure"),
    )
    sizes = [int(side) for side in options.sizes.split(",")]
    with TemporaryDirectory() as name:
        found = {side: measure(Path(name, str(side)), options.model, side, options.batch_size) for side in sizes}
        large = measure_large(Path(name, "large"), options.large) if options.large else None
    if options.json:
        print(json.dumps({"peak_mb": found, "large_mb": large, "machine": machine()}, indent=2))
        return
    print(f"peak memory in MB of {options.model} at its defaults, training in batches of {options.batch_size}")
    rows = [[command, *(f"{found[side][command]:.0f}" for side in sizes)] for command in COMMANDS]
    print(aligned([["", *(f"{side}²" for side in sizes)], *rows]))
    if large is not None:
        print(f"eval of {LARGE[0]:,} x {LARGE[1]:,}, its three metrics: {large:.0f} MB")
    print(", ".join(f"{key} {value}" for key, value in machine().items() if value is not None))


def measure(folder: Path, model: str, side: int, batch_size: int) -> dict[str, float]:
    """Train for two steps on squares of a side and use the model; return each command's peak in MB."""
    images = write_photographs(folder / "images", 2 * batch_size + 2, side, side)
    train = ["train", model, "--data", images, "--image-size", side, "--batch-size", batch_size, "--steps", 2,
             "--val-fraction", 0.2, "--out", folder / "run"]  # fmt: skip
    of_model = ["--model", folder / "run", "--data", images, "--out"]
    words = {
        "train": train,
        "reconstruct": ["reconstruct", *of_model, folder / "made"],
        "encode": ["encode", *of_model, folder / "latents", "--labels", "none"],
        "eval": ["eval", "--gt", images, "--pred", folder / "made"],
    }
    return {command: peak_mb(folder, each) for command, each in words.items()}


def measure_large(folder: Path, pairs: int) -> float:
    """Measure photographs of 12 megapixels against JPEGs of lower quality; return the peak in MB."""
    truths = write_photographs(folder / "gt", pairs, *LARGE, suffix="jpg")
    (folder / "pred").mkdir()
    for path in truths.iterdir():
        with Image.open(path) as picture:
            picture.save(folder / "pred" / path.name, quality=50)
    return peak_mb(folder, ["eval", "--gt", truths, "--pred", folder / "pred"])


def peak_mb(folder: Path, words: Sequence[object]) -> float:
    """Return the peak of `aecli` with these words, on the CPU."""
    command = [sys.executable, "-m", "aecli", *map(str, words), "--device", "cpu", "--quiet"]
    return run(command, env={"XDG_CACHE_HOME": str(folder / "cache")}).peak_mb


if __name__ == "__main__":
    main()
