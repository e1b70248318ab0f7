"""How `aecli eval` scales: peak memory and time a pair, for many small images against few."""

import sys
import tempfile
from pathlib import Path

import numpy as np
from skimage.data import astronaut

from tests.benchmarks.common import Completed, Row, arguments, run, show

SIDE = 32
START = 8  # pairs whose time is start-up alone
# A 24-bit BMP is this header and the rows from the bottom up; written by hand, which is faster than an encoder.
HEADER = b"BM" + b"".join(
    value.to_bytes(size, "little")
    for value, size in [
        (54 + 3 * SIDE * SIDE, 4), (0, 4), (54, 4), (40, 4), (SIDE, 4), (SIDE, 4), (1, 2), (24, 2), (0, 4),
        (3 * SIDE * SIDE, 4), (2835, 4), (2835, 4), (0, 4), (0, 4),
    ]
)  # fmt: skip


def main() -> None:
    """Measure and print."""
    options = arguments(
        main.__doc__ or "",
        pairs=(100_000, "pairs of images"),
        few=(1000, "pairs to compare with"),
        repeats=(3, "runs of the few"),
    )
    with tempfile.TemporaryDirectory() as name:
        folders = {count: Path(name, str(count)) for count in (START, options.few, options.pairs)}
        for count, folder in folders.items():
            make_images(folder, count)
        start, few = (
            min((evaluate(folders[count]) for _ in range(options.repeats)), key=lambda ran: ran.seconds)
            for count in (START, options.few)
        )
        many = evaluate(folders[options.pairs])
    per_few = 1e3 * (few.seconds - start.seconds) / (options.few - START)
    per_many = 1e3 * (many.seconds - start.seconds) / (options.pairs - START)
    rows = [
        Row("peak resident memory", "MB", many.peak_mb, few.peak_mb, many.peak_mb / few.peak_mb),
        Row("time a pair beyond start-up", "ms", per_many, per_few, per_many / per_few),
        Row("the same in CPU time", "ms", _cpu_ms(many, start, options.pairs), _cpu_ms(few, start, options.few)),
    ]
    notes = {
        "columns": f"ours is {options.pairs} pairs, plain {options.few}; ratio is the one over the other, best near 1",
        "more memory, MB": f"{many.peak_mb - few.peak_mb:.0f}",
        "whole runs, s": f"{START} pairs {start.seconds:.1f}, {options.few} {few.seconds:.1f}, "
        f"{options.pairs} {many.seconds:.1f}",
    }
    title = f"eval of {options.pairs} pairs of {SIDE}x{SIDE} BMPs against {options.few}: PSNR, SSIM, LPIPS"
    show(title, rows, options.json, **notes)


def make_images(folder: Path, count: int) -> None:
    """Cut a photograph into `gt`, and the same with noise into `pred`, a thousand files a folder."""
    photograph = astronaut()
    rng = np.random.default_rng(0)
    noise = rng.integers(-20, 21, (64, SIDE, SIDE, 3))
    for index in range(count):
        top, left = rng.integers(0, photograph.shape[0] - SIDE + 1, 2)
        pixels = photograph[top : top + SIDE, left : left + SIDE]
        worse = np.clip(pixels + noise[index % len(noise)], 0, 255).astype(np.uint8)
        for name, image in (("gt", pixels), ("pred", worse)):
            path = folder / name / f"{index // 1000:03}" / f"{index:06}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(HEADER + image[::-1, :, ::-1].tobytes())


def evaluate(folder: Path) -> Completed:
    """Run `aecli eval` with its three metrics."""
    words = ["--gt", folder / "gt", "--pred", folder / "pred", "--device", "cpu", "--quiet", "--json"]
    return run([sys.executable, "-m", "aecli", "eval", *words])


def _cpu_ms(ran: Completed, start: Completed, pairs: int) -> float:
    return 1e3 * (ran.cpu_seconds - start.cpu_seconds) / (pairs - START)


if __name__ == "__main__":
    main()
