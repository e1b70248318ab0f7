"""An endless stream of batches from shards: shuffled in bounded memory, the same for every number of processes.

The shards are divided into shard groups, and each global batch takes equally many images of every group. A group passes
over its shards again and again, in an order of its own each time, and is shuffled block by block. So the contents of a
batch follow from the seed and the shards alone; a rank reads the groups in which its slice of the batch lies; and a
position in the stream is a few integers per group.
"""

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch

from aecli.configs.checks import RANDOM_CROP
from aecli.data.batches import stack
from aecli.data.decoding.colour import Colour
from aecli.data.decoding.conversions import ConversionCounts
from aecli.data.decoding.decode import WHITE, DecodeError, Pixels, decode_fitted
from aecli.data.image_ref import ImageRef
from aecli.data.orientations import Orientations, oriented
from aecli.data.packs.on_the_fly import require_few_broken
from aecli.data.packs.whole import cut_piece
from aecli.data.sources.shards import Encoded, Shards, is_stream
from aecli.errors import DataError, single_line, summarize
from aecli.runtime.threads import ordered_map
from aecli.storage.strict_json import is_count

__all__ = ["ShardPosition", "Stream", "StreamBatch", "is_stream"]

MAX_SHARD_GROUPS = 64  # each has a shard open
_READERS = 8  # threads that read blocks
_BATCHES_AHEAD = 2
_MIN_DECODED = 200  # images before the fraction of broken ones is judged
_CLOSING_SECONDS = 5.0
_ORDER, _FLIPS, _SHARDS, _PLACES, _TURNS, _SCALES = range(6)  # spawn keys of the random generators

Item = TypeVar("Item")
# Of a shard group: the number of its current block; the pass, the index of the shard within the pass and the row at
# which that block starts; how many images of the block are consumed.
ShardPosition = list[int]
_START: ShardPosition = [0, 0, 0, 0, 0]


@dataclass(frozen=True)
class StreamBatch:
    """One rank's slice of a global batch: uint8 (n, 3, S, S), channels last in memory.

    `positions` (shard group -> its position after this batch) has each group on one rank: the one whose slice its first
    image of the batch lies in.
    """

    pixels: torch.Tensor
    positions: Mapping[int, ShardPosition]


@dataclass(frozen=True)
class _Block:
    """Consecutive images of a shard group, the order in which they are consumed, and how each is augmented."""

    number: int
    start: tuple[int, int, int]
    images: Sequence[Encoded]
    order: np.ndarray[Any, np.dtype[np.int64]]
    orientations: Orientations
    places: np.ndarray[Any, np.dtype[np.float64]]  # (n, 2): of the pieces of whole pictures
    scales: np.ndarray[Any, np.dtype[np.float64]]  # (n,): likewise, with `resized_crops`


@dataclass(eq=False)
class Stream:
    """A SOURCE in shards as endless batches; raises DataError if it can't be opened.

    A global batch has `batch_size` images, and about `buffer` are shuffled at a time. They are mirrored (`flip`),
    turned by quarter turns (`turns`), and cut out of whole pictures (`how` is `random-crop`, or `resized_crops`, which
    cut pieces of any scale and resize them). `skipped` (name -> reason)
    collects images that can't be decoded, `conversions` counts what decoding did to the others.
    """

    source: str
    size: int
    how: str
    seed: int
    batch_size: int
    buffer: int
    workers: int | None = None
    flip: bool = False
    background: Colour = WHITE
    skip_broken: bool = False
    turns: bool = False
    resized_crops: bool = False
    skipped: dict[str, str] = field(default_factory=dict, init=False)
    conversions: ConversionCounts = field(default_factory=ConversionCounts, init=False)

    def __post_init__(self) -> None:
        self._shards = Shards(self.source)
        self.shards, self.fingerprint = self._shards.names, self._shards.fingerprint
        limit = min(len(self.shards), MAX_SHARD_GROUPS)
        self.shard_groups = max(count for count in range(1, limit + 1) if self.batch_size % count == 0)
        self._per_group = self.batch_size // self.shard_groups  # images of a global batch
        self._block_size = max(1, -(-self.buffer // self.shard_groups))
        self._decoded = 0
        self._lock = Lock()

    def require_positions(self, positions: Sequence[Any]) -> None:
        """Raise ValueError unless `positions` are valid in this stream, one for each shard group."""
        if not isinstance(positions, list) or len(positions) != self.shard_groups:
            raise ValueError(f"the stream has {self.shard_groups} shard groups")
        for group, position in enumerate(positions):
            if not (isinstance(position, list) and len(position) == len(_START) and all(map(is_count, position))):
                raise ValueError("invalid position in the stream")
            number, _, shard, _, consumed = position
            if shard > len(self._shards_of(group)) or consumed > self._length(group, number):
                raise ValueError("position beyond the end of a shard group")

    def batches(
        self, batch_slice: tuple[int, int], positions: Sequence[ShardPosition] | None = None, on_cuda: bool = False
    ) -> Generator[StreamBatch, None, None]:
        """Yield `batch_slice` (first, last + 1) of each global batch, from `positions` on.

        Threads read, decode and stack ahead; closing the generator ends them. `on_cuda`: into pinned memory.

        Raises:
            DataError: a shard can't be read, or more than 1 % of the images can't be decoded.
        """
        return _ahead(self._batches(batch_slice, positions or [_START] * self.shard_groups, on_cuda), _BATCHES_AHEAD)

    def _batches(
        self, batch_slice: tuple[int, int], positions: Sequence[ShardPosition], on_cuda: bool
    ) -> Generator[StreamBatch, None, None]:
        first, last = batch_slice
        positions_after: deque[Mapping[int, ShardPosition]] = deque()
        pool = ThreadPoolExecutor(_READERS, thread_name_prefix="aecli-read")
        try:
            images = self._images_of(batch_slice, positions, pool, positions_after)
            with closing(ordered_map(self._decode, images, self.workers, 2 * (last - first))) as rows:
                while True:
                    pixels = stack(rows, np.arange(last - first), (3, self.size, self.size), None, on_cuda)
                    yield StreamBatch(pixels, positions_after.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _images_of(
        self,
        batch_slice: tuple[int, int],
        positions: Sequence[ShardPosition],
        pool: ThreadPoolExecutor,
        positions_after: deque[Mapping[int, ShardPosition]],
    ) -> Iterator[tuple[_Block, int]]:
        """Yield (block, index) of each image of `batch_slice`, batch by batch; append the positions after each."""
        (first, last), per_group = batch_slice, self._per_group
        numbers = range(first // per_group, (last - 1) // per_group + 1)
        groups = {each: _ShardGroup(self._blocks(each, positions[each]), positions[each][4], pool) for each in numbers}
        while True:
            for number, group in groups.items():
                for index in range(number * per_group, (number + 1) * per_group):
                    image = group.next_image()
                    if first <= index < last:
                        yield image
            positions_after.append(
                {number: group.position() for number, group in groups.items() if first <= number * per_group < last}
            )

    def _decode(self, image: tuple[_Block, int]) -> Pixels:
        """The pixels (3, S, S) at an index of a block; where it can't be decoded, of the next one that can."""
        block, start = image
        how = RANDOM_CROP if self.resized_crops else self.how
        for index in (*range(start, len(block.order)), *range(start)):
            encoded = block.images[block.order[index]]
            if encoded.name in self.skipped:
                continue
            self._decoded += 1
            ref = ImageRef(encoded.name, "", str(len(encoded.content)), partial(bytes, encoded.content))
            try:
                decoded = decode_fitted(ref, self.size, how, self.background)
            except DecodeError as error:
                self.skipped[encoded.name] = error.reason
                continue
            if self._decoded >= _MIN_DECODED:
                require_few_broken(self.skipped, self._decoded, self.skip_broken)
            with self._lock:
                self.conversions.add(encoded.name, decoded)
            pixels = decoded.pixels.transpose(2, 0, 1)
            if how == RANDOM_CROP:
                scale = float(block.scales[start]) if self.resized_crops else None
                pixels = cut_piece(pixels, self.size, block.places[start], scale)
            return oriented(pixels, int(block.orientations[start]))
        raise DataError(
            f"{self.source}: none of {len(block.images)} neighbouring images can be decoded: {summarize(self.skipped)}"
        )

    # Shard groups

    def _shards_of(self, group: int) -> range:
        return range(group, len(self.shards), self.shard_groups)

    def _length(self, group: int, number: int) -> int:
        """Images of a group's block: the first is shorter, differently in each group, so that not all end at once."""
        return self._block_size if number else max(1, -(-self._block_size * (group + 1) // self.shard_groups))

    def _blocks(self, group: int, position: ShardPosition) -> Iterator[_Block]:
        """Yield the blocks of a group from the one at `position` on, endlessly."""
        number, start = position[0], (position[1], position[2], position[3])
        images: list[Encoded] = []
        for at, encoded in self._images(group, *start):
            if len(images) == self._length(group, number):
                yield self._shuffled(group, number, start, images)
                number, start, images = number + 1, at, []
            images.append(encoded)

    def _shuffled(self, group: int, number: int, start: tuple[int, int, int], images: list[Encoded]) -> _Block:
        def random(key: int) -> np.random.Generator:
            return self._random(key, group, number)

        count = len(images)
        orientations = np.zeros(count, np.uint8)
        if self.flip:
            orientations += random(_FLIPS).random(count) < 0.5
        if self.turns:
            orientations += 2 * random(_TURNS).integers(4, size=count, dtype=np.uint8)
        return _Block(number, start, images, random(_ORDER).permutation(count), orientations,
                      random(_PLACES).random((count, 2)), random(_SCALES).random(count))  # fmt: skip

    def _images(
        self, group: int, pass_number: int, first_shard: int, row: int
    ) -> Iterator[tuple[tuple[int, int, int], Encoded]]:
        """Yield a group's images, each with (its pass, the index of its shard in the pass, its row)."""
        shards = self._shards_of(group)
        while True:
            order = self._random(_SHARDS, group, pass_number).permutation(len(shards))
            is_empty = row == 0 and first_shard == 0
            for index in range(first_shard, len(shards)):
                for number, encoded in self._shards.read(shards[order[index]], row):
                    is_empty = False
                    yield (pass_number, index, number), encoded
                row = 0
            if is_empty:
                raise DataError(f"{self.source} holds no images: none is in {single_line(self.shards[shards[0]])}")
            pass_number, first_shard = pass_number + 1, 0

    def _random(self, key: int, group: int, number: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self.seed, group, number], spawn_key=(key,)))


@dataclass
class _ShardGroup:
    """A shard group's images one by one; the block after the current one is prefetched."""

    blocks: Iterator[_Block]
    consumed: int  # images of the current block
    pool: ThreadPoolExecutor
    block: _Block = field(init=False)
    next_block: "Future[_Block]" = field(init=False)

    def __post_init__(self) -> None:
        self.next_block = self.pool.submit(next, self.blocks)
        self._advance()

    def _advance(self) -> None:
        self.block = self.next_block.result()
        self.next_block = self.pool.submit(next, self.blocks)

    def next_image(self) -> tuple[_Block, int]:
        """(block, index) of the next image."""
        if self.consumed == len(self.block.order):
            self._advance()
            self.consumed = 0
        self.consumed += 1
        return self.block, self.consumed - 1

    def position(self) -> ShardPosition:
        """The position after the images consumed so far."""
        return [self.block.number, *self.block.start, self.consumed]


def _ahead(items: Generator[Item, None, None], count: int) -> Generator[Item, None, None]:
    """Yield `items`, of which a thread makes `count` ahead."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="aecli-stream")
    pending: deque[Future[Item]] = deque()
    try:
        pending.extend(pool.submit(next, items) for _ in range(count))
        while True:
            item = pending.popleft().result()
            pending.append(pool.submit(next, items))
            yield item
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        # A network read may take long, and is not waited for here.
        if not wait([each for each in pending if not each.cancelled()], _CLOSING_SECONDS).not_done:
            items.close()
