"""The cost of many files: indexing them with an existing pack, building a pack, and decoding without one.

`python -m tests.benchmarks.scale [--files N] [--json]`
"""

import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from io import BytesIO
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from aecli.data.batches import epoch_order, iterate
from aecli.data.packs import cache_folder as caches
from aecli.data.packs.on_the_fly import OnTheFly
from aecli.data.packs.pack import Pack, describe, pack_images, pack_key
from aecli.data.sources.registry import list_images
from aecli.runtime.threads import worker_count
from tests.benchmarks.common import Row, arguments, interleave, run, show
from tests.benchmarks.pictures import write_photographs
from tests.support.data import finish

SIDE = 256
FILES_A_FOLDER = 1000
LINKS_A_FILE = 30_000  # ext4 allows 65,000
PHOTOGRAPHS = 400

# Everything that training does with the images before its first step, in a fresh process, not counting imports.
INDEX = """
import json, sys, time
from aecli.configs import TrainConfig
from aecli.data.packs import pack

from aecli.training.inputs.image_sets import gather_images, list_sources
from aecli.runtime.memory import peak_memory
import torch

def peak_mb():
    return peak_memory(torch.device("cpu")) / 1e6

def refuse(*arguments):
    raise SystemExit("an image was decoded")

pack.decode_fitted = refuse
config = TrainConfig("ae", data=sys.argv[1], cache=sys.argv[2])
before, start = peak_mb(), time.perf_counter()
for report in gather_images(config, list_sources(config), lambda: False):
    raise SystemExit(f"the pack was not found: {report}")
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "before": before, "after": peak_mb()}))
"""

PLAIN_INDEX = """
import json, sys, time
from pathlib import Path
start = time.perf_counter()
suffixes = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
sorted(path for path in Path(sys.argv[1]).rglob("*") if path.suffix.lower() in suffixes and path.is_file())
print(json.dumps({"seconds": time.perf_counter() - start}))
"""

# The lower bound: the names, and one stat of each file.
WALK = """
import json, os, sys, time
start = time.perf_counter()
for folder, _, names in os.walk(sys.argv[1]):
    for name in names:
        os.stat(os.path.join(folder, name))
print(json.dumps({"seconds": time.perf_counter() - start}))
"""


def make_files(folder: Path, count: int) -> None:
    """Make `count` files, most of them hard links to one tiny image, a thousand in a folder."""
    buffer = BytesIO()
    Image.new("RGB", (8, 8), (90, 120, 30)).save(buffer, "PNG")
    original = folder
    for index in range(count):
        within = folder / f"class-{index // FILES_A_FOLDER:05d}"
        if index % FILES_A_FOLDER == 0:
            within.mkdir(parents=True)
        path = within / f"image-{index:08d}.png"
        if index % LINKS_A_FILE == 0:
            path.write_bytes(buffer.getvalue())
            original = path
        else:
            os.link(original, path)


def make_pack(source: Path, cache: Path) -> None:
    """Write a pack of `source` as training would find it, with pixels that are a hole in the file."""
    images = list_images(str(source))
    folder = cache / pack_key(images, SIDE, "squash")
    folder.mkdir(parents=True)
    with open(folder / caches.PIXELS, "wb") as file:
        file.truncate(len(images) * 3 * SIDE * SIDE)
    (folder / caches.INDEX).write_text(json.dumps(describe(SIDE, "squash", len(images), {})))


def measure_index(work: Path, count: int, repeats: int) -> list[Row]:
    """Time the start of training on `count` files, against listing them with pathlib."""
    source, cache = work / "files", work / "packs"
    make_files(source, count)
    make_pack(source, cache)

    def child(code: str) -> dict[str, float]:
        return dict(json.loads(run([sys.executable, "-c", code, source, cache]).stdout))

    memory: list[dict[str, float]] = []

    def ours() -> float:
        memory.append(child(INDEX))
        return memory[-1]["seconds"]

    seconds, plain, walk = map(
        median, interleave([ours, lambda: child(PLAIN_INDEX)["seconds"], lambda: child(WALK)["seconds"]], repeats)
    )
    peak, before = (median(figures[name] for figures in memory) for name in ("after", "before"))
    return [
        Row(f"index {count:,} files that have a pack", "s", seconds, plain, plain / seconds, walk,
            "os.walk and os.stat; plain: a sorted Path.rglob, which neither hashes nor splits"),
        Row("  its peak memory", "MB", peak, limit=before, limit_is="the imports alone"),
        Row("  memory an image", "bytes", (peak - before) * 1e6 / count),
    ]  # fmt: skip


def measure_decoding(work: Path, photographs: int, repeats: int) -> list[Row]:
    """Images a second: building a pack, batches decoded on the fly, batches from the pack, and a simple loop."""
    folder = write_photographs(work / "photographs", photographs, 500, 375, "jpg")
    images = list_images(str(folder))
    paths = [folder / image.name for image in images]
    order, cores = epoch_order(len(images), 0, 0), worker_count(None)

    def rate(work: Callable[[], object]) -> Callable[[], float]:
        def timed() -> float:
            start = time.perf_counter()
            work()
            return len(images) / (time.perf_counter() - start)

        return timed

    def plain() -> None:
        for path in paths:
            Image.open(path).convert("RGB").resize((SIDE, SIDE))

    def build() -> Pack:
        with tempfile.TemporaryDirectory(dir=work) as cache:
            return finish(pack_images(images, SIDE, "squash", cache))[0]

    def through(rows: np.ndarray | OnTheFly) -> None:
        with closing(iterate(rows, order, 16, "cpu", channels_last=True)) as batches:
            for _ in batches:
                pass

    kept = finish(pack_images(images, SIDE, "squash", str(work / "kept")))[0].images
    decoded = OnTheFly(images, SIDE, "squash")
    ways = (plain, build, lambda: through(decoded), lambda: through(kept))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of the plain loop's files
        plainly, built, on_the_fly, read = map(median, interleave([rate(way) for way in ways], repeats))
    many = f"plain on each of {cores} cores"
    return [
        Row("build a pack at 256²", "images/s", built, plainly, built / plainly, plainly * cores, many),
        Row("batches of 16 on the fly", "images/s", on_the_fly, plainly, on_the_fly / plainly, plainly * cores, many),
        Row("batches of 16 from the pack", "images/s", read, on_the_fly, read / on_the_fly,
            limit_is="plain: on the fly"),
    ]  # fmt: skip


def main() -> None:
    """Measure and show."""
    options = arguments(
        __doc__ or "",
        files=(200_000, "files to index"),
        photographs=(PHOTOGRAPHS, "JPEGs of 500 x 375 to decode"),
        repeats=(5, "turns"),
    )
    with tempfile.TemporaryDirectory(prefix="aecli-scale-") as work:
        rows = measure_index(Path(work), options.files, options.repeats)
        rows += measure_decoding(Path(work), options.photographs, options.repeats)
    show("Many files", rows, options.json, photographs=f"{options.photographs} JPEGs of 500 x 375")


if __name__ == "__main__":
    main()
