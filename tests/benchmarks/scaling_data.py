"""The data side of scaling: what a core decodes, and what 10⁶ to 10⁹ images ask for."""

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from aecli.data.batches import epoch_order, iterate
from aecli.data.decoding.decode import decode_fitted
from aecli.data.packs.pack import Pack, pack_images
from aecli.data.sources.registry import list_images
from aecli.data.streams import MOST_LANES, Stream
from tests.benchmarks.common import Row, in_turns, middle
from tests.benchmarks.pictures import write_photographs
from tests.benchmarks.scaling_predictions import COUNTS, LINKS, Table, gpu_step
from tests.support.shards import write_tar

SIDE = 256
PIXELS = 3 * SIDE * SIDE  # bytes an image in a pack
BATCH = 16
SHARDS = 4
# Of tests.benchmarks.scale (RESULTS.md): seconds and MB at 200,000 and at 1,000,000 files.
INDEXED = ((200_000, 1.06, 624.0), (1_000_000, 5.9, 948.0))
COUNTS_OF_IMAGES = (10**6, 10**8, 10**9)


@dataclass(frozen=True)
class Decoding:
    """Images that a core brings to 256² in a second of its own time, decoded, streamed and read from a pack."""

    decoded: float
    streamed: float
    packed: float
    encoded_bytes: float

    def rows(self) -> list[Row]:
        """As they are printed."""
        many = "plain: decoding alone"
        return [
            Row("decode and resize to 256²", "images/s a core", self.decoded),
            Row("  from a stream of tar shards", "images/s a core", self.streamed, self.decoded,
                self.streamed / self.decoded, limit_is=many),
            Row("  batches from a pack", "images/s a core", self.packed, self.decoded, self.packed / self.decoded,
                limit_is=many),
            Row("  a photograph of 500 x 375, JPEG", "bytes", self.encoded_bytes),
        ]  # fmt: skip


def measure_decoding(work: Path, count: int, turns: int) -> Decoding:
    """Images a second of processor time, whatever the number of threads, so that neighbours change little."""
    folder = write_photographs(work / "decoded", count, 500, 375, "jpg")
    files = sorted(folder.iterdir())
    for number in range(SHARDS):
        write_tar(work / "shards" / f"{number}.tar", {file.name: file.read_bytes() for file in files[number::SHARDS]})
    images = list_images(str(folder))
    steps = pack_images(images, SIDE, "squash", str(work / "packs"))
    pack = _finish(steps).images
    stream = Stream(str(work / "shards" / "*.tar"), SIDE, "squash", 0, BATCH, count // 4, workers=1)

    def decode() -> Generator[object, None, None]:
        for start in range(0, count, BATCH):
            yield [decode_fitted(image, SIDE, "squash") for image in images[start : start + BATCH]]

    def read_pack() -> Generator[torch.Tensor, None, None]:
        return iterate(pack, epoch_order(count, 0, 0), BATCH, "cpu", channels_last=True)

    ways = [lambda way=way: _rate(way(), count // BATCH)
            for way in (decode, lambda: stream.batches((0, BATCH)), read_pack)]  # fmt: skip
    decoded, streamed, packed = map(middle, in_turns(ways, turns))
    return Decoding(decoded, streamed, packed, sum(file.stat().st_size for file in files) / count)


def _finish(steps: Generator[object, None, Pack]) -> Pack:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            pack: Pack = end.value
            return pack


def _rate(batches: Generator[object, None, None], count: int) -> float:
    """Images a second of processor time in `count` batches, from the first on: what is made ahead stays as much."""
    with closing(batches):
        next(batches)
        began = time.process_time()
        for _ in range(count - 1):
            next(batches)
        return (count - 1) * BATCH / (time.process_time() - began)


def data_tables(decoding: Decoding) -> list[Table]:
    """What is needed for so many images, and a GPU and a machine a second."""
    return [_sizes(decoding), _rates(decoding)]


def _sizes(decoding: Decoding) -> Table:
    (few, few_s, few_mb), (many, many_s, many_mb) = INDEXED
    a_file_s, a_file_mb = (many_s - few_s) / (many - few), (many_mb - few_mb) / (many - few)
    lines = []
    for count in COUNTS_OF_IMAGES:
        index_s, index_mb = few_s + (count - few) * a_file_s, few_mb + (count - few) * a_file_mb
        passes = [count / gpu_step(gpus, LINKS[-1], 128).images_per_s / 3600 for gpus in COUNTS]
        lines.append([f"{count:.0e} images", f"{count * PIXELS / 1e12:,.3g}",
                      f"{count * decoding.encoded_bytes / 1e12:,.3g}", f"{index_s:,.0f}", f"{index_mb / 1e3:,.1f}",
                      f"{count / decoding.decoded / 3600:,.3g}", *(f"{each:,.3g}" for each in passes)])  # fmt: skip
    heading = ["", "pack TB", "JPEG TB", "index s", "index GB a process", "decoding, core hours",
               *(f"a pass on {gpus} GPUs, h" for gpus in COUNTS)]  # fmt: skip
    return Table("Computed: a set's size, its index as a folder of files, and a pass over it", heading, lines)


def _rates(decoding: Decoding) -> Table:
    lines = []
    for images in (32, 128):
        for gpus in (1, *COUNTS):
            rate = gpu_step(gpus, LINKS[-1], images).images_per_s / gpus
            machine = rate * min(8, gpus)
            again = max(1.0, gpus / MOST_LANES)
            cells = [rate, rate * PIXELS / 1e6, machine * PIXELS / 1e9, rate * decoding.encoded_bytes / 1e6,
                     machine * decoding.encoded_bytes * 8 / 1e9, rate / decoding.decoded, rate / decoding.streamed,
                     rate / decoding.packed, again]  # fmt: skip
            where = "alone" if gpus == 1 else f"of {gpus} at {LINKS[-1]} Gbit/s"
            lines.append([f"a GPU {where}, {images} images a step", *(f"{cell:,.3g}" for cell in cells)])
    heading = ["", "images/s a GPU", "pack MB/s a GPU", "pack GB/s a machine", "JPEG MB/s a GPU",
               "JPEG Gbit/s a machine", "cores a GPU to decode", "to stream", "from a pack",
               "a shard is read by"]  # fmt: skip
    return Table("Computed from the rates a core above: what feeding the GPUs takes", heading, lines)
