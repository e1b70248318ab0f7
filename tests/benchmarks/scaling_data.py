"""The data side of scaling: images a second that a core decodes, streams and reads from a pack."""

import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from statistics import median

import torch

from aecli.data.batches import epoch_order, iterate
from aecli.data.decoding.decode import decode_fitted
from aecli.data.packs.pack import pack_images
from aecli.data.sources.registry import list_images
from aecli.data.streams import Stream
from tests.benchmarks.common import Row, interleave
from tests.benchmarks.pictures import write_photographs
from tests.support.data import finish
from tests.support.shards import write_tar

SIDE = 256
BATCH = 16
SHARDS = 4


def measure_decoding(work: Path, count: int, turns: int) -> list[Row]:
    """Images a second of processor time, over all threads, so that other load on the machine changes little."""
    folder = write_photographs(work / "decoded", count, 500, 375, "jpg")
    files = sorted(folder.iterdir())
    for number in range(SHARDS):
        write_tar(work / "shards" / f"{number}.tar", {file.name: file.read_bytes() for file in files[number::SHARDS]})
    images = list_images(str(folder))
    pack = finish(pack_images(images, SIDE, "squash", str(work / "packs")))[0].images
    stream = Stream(str(work / "shards" / "*.tar"), SIDE, "squash", 0, BATCH, count // 4, workers=1)

    def decode() -> Generator[object, None, None]:
        for start in range(0, count, BATCH):
            yield [decode_fitted(image, SIDE, "squash").pixels for image in images[start : start + BATCH]]

    def read_pack() -> Generator[torch.Tensor, None, None]:
        return iterate(pack, epoch_order(count, 0, 0), BATCH, "cpu", channels_last=True)

    ways = [lambda way=way: _rate(way(), count // BATCH)
            for way in (decode, lambda: stream.batches((0, BATCH)), read_pack)]  # fmt: skip
    decoded, streamed, packed = map(median, interleave(ways, turns))
    unit, limit_is = "images/s a core", "plain: decoding alone"
    return [
        Row("decode and resize to 256²", unit, decoded),
        Row("  from a stream of tar shards", unit, streamed, decoded, streamed / decoded, limit_is=limit_is),
        Row("  batches from a pack", unit, packed, decoded, packed / decoded, limit_is=limit_is),
        Row("  a JPEG photograph of 500 x 375", "bytes", sum(file.stat().st_size for file in files) / count),
    ]


def _rate(batches: Generator[object, None, None], count: int) -> float:
    """Images a second of processor time over `count` batches, after a first one that fills the prefetch."""
    with closing(batches):
        next(batches)
        start = time.process_time()
        for _ in range(count - 1):
            next(batches)
        return (count - 1) * BATCH / (time.process_time() - start)
