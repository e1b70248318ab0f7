"""An endless stream of batches out of shards: shuffled in bounded memory, the same for every number of processes.

The shards are dealt to lanes, and each global batch takes as many images of every lane. A lane passes over its shards
again and again, in an order of its own each time, and is shuffled block by block. So what a batch holds follows from
the seed and the shards alone; a process reads the lanes in which its part of the batch lies; and a place in the stream
is a few numbers a lane.
"""

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from aecli.data.batches import stack
from aecli.data.decoding.decode import DecodeError, Pixels, decode_fitted
from aecli.data.image_ref import ImageRef
from aecli.data.packs.on_the_fly import BROKEN_LIMIT
from aecli.data.sources.shards import Encoded, Shards, is_stream
from aecli.errors import DataError, single_line, summarize
from aecli.runtime.threads import ordered_map
from aecli.storage.strict_json import is_count

__all__ = ["ShardPosition", "Stream", "StreamBatch", "is_stream"]

MAX_SHARD_GROUPS = 64  # each has a shard open
_READERS = 8  # threads that read blocks
_BATCHES_AHEAD = 2
_TRIED = 200  # images before it is judged how many are broken
_CLOSING_SECONDS = 5.0
_ORDER, _FLIPS, _SHARDS = 0, 1, 2  # streams of random numbers

Item = TypeVar("Item")
# Of a lane: the number of its current block; the pass, the place of the shard within the pass and the row at which that
# block begins; how many images of the block are taken.
ShardPosition = list[int]
_START: ShardPosition = [0, 0, 0, 0, 0]


@dataclass(frozen=True)
class StreamBatch:
    """One process's part of a global batch: uint8 (n, 3, S, S), channels innermost in memory.

    `positions` tell where lanes stand after it: of each lane, to the one process in whose part its first place lies.
    """

    pixels: torch.Tensor
    positions: Mapping[int, ShardPosition]


@dataclass(frozen=True)
class _Block:
    """Consecutive images of a lane, the order in which they are taken, and which of them are mirrored."""

    number: int
    begins: tuple[int, int, int]
    images: Sequence[Encoded]
    order: np.ndarray[Any, np.dtype[np.int64]]
    mirrored: np.ndarray[Any, np.dtype[np.bool_]]


class Stream:
    """A SOURCE in shards, as batches without an end. `skipped` (name → reason) gets images that can't be decoded."""

    def __init__(
        self,
        source: str,
        size: int,
        how: str,
        seed: int,
        batch_size: int,
        buffer: int,
        workers: int | None = None,
        flip: bool = False,
    ) -> None:
        """Open `source`; `batch_size` images make a global batch, about `buffer` of them are shuffled at a time.

        Raises:
            DataError: it can't be opened.
        """
        self._shards = Shards(source)
        self.source, self.shards, self.fingerprint = source, self._shards.names, self._shards.fingerprint
        self._size, self._how, self._seed, self._workers, self._flip = size, how, seed, workers, flip
        most = min(len(self.shards), MAX_SHARD_GROUPS)
        self.lanes = max(count for count in range(1, most + 1) if batch_size % count == 0)
        self._of_a_batch = batch_size // self.lanes
        self._block = max(1, -(-buffer // self.lanes))
        self.skipped: dict[str, str] = {}
        self._tried = 0

    def require_positions(self, positions: Sequence[Any]) -> None:
        """Raise ValueError unless `positions` are places of this stream, one a lane."""
        if not isinstance(positions, list) or len(positions) != self.lanes:
            raise ValueError(f"its stream has {self.lanes} lanes")
        for lane, position in enumerate(positions):
            if not (isinstance(position, list) and len(position) == len(_START) and all(map(is_count, position))):
                raise ValueError("its place in the stream makes no sense")
            number, _, shard, _, taken = position
            if shard > len(self._of_lane(lane)) or taken > self._length(lane, number):
                raise ValueError("its place in the stream lies behind an end")

    def batches(
        self, part: tuple[int, int], positions: Sequence[ShardPosition] | None = None, on_cuda: bool = False
    ) -> Generator[StreamBatch, None, None]:
        """Yield the images from the first up to the last place of `part` in each global batch, from `positions` on.

        Threads read, decode and stack meanwhile; closing the generator ends them. `on_cuda`: in page-locked memory.

        Raises:
            DataError: a shard can't be read, or more than 1 % of the images can't be decoded.
        """
        return _ahead(self._batches(part, list(positions or [_START] * self.lanes), on_cuda), _BATCHES_AHEAD)

    def _batches(
        self, part: tuple[int, int], positions: list[ShardPosition], on_cuda: bool
    ) -> Generator[StreamBatch, None, None]:
        first, last = part
        after: deque[Mapping[int, ShardPosition]] = deque()
        pool = ThreadPoolExecutor(_READERS, thread_name_prefix="aecli-read")
        try:
            with closing(
                ordered_map(self._decode, self._places(part, positions, pool, after), self._workers, 2 * (last - first))
            ) as rows:
                while True:
                    pixels = stack(rows, np.arange(last - first), (3, self._size, self._size), None, on_cuda)
                    yield StreamBatch(pixels, after.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _places(
        self,
        part: tuple[int, int],
        positions: list[ShardPosition],
        pool: ThreadPoolExecutor,
        after: deque[Mapping[int, ShardPosition]],
    ) -> Iterator[tuple[_Block, int]]:
        """Yield block and place of each image of `part`, batch by batch; note where lanes stand after each."""
        (first, last), each = part, self._of_a_batch
        touched = range(first // each, (last - 1) // each + 1)
        lanes = {lane: _Lane(self._blocks(lane, positions[lane]), positions[lane][4], pool) for lane in touched}
        while True:
            for number, lane in lanes.items():
                for place in range(number * each, (number + 1) * each):
                    taken = lane.take()
                    if first <= place < last:
                        yield taken
            after.append({number: lane.position() for number, lane in lanes.items() if first <= number * each < last})

    def _decode(self, place: tuple[_Block, int]) -> Pixels:
        """The pixels (3, S, S) at a place of a block; those of the next that can be decoded where that one can't."""
        block, start = place
        for index in (*range(start, len(block.order)), *range(start)):
            encoded = block.images[block.order[index]]
            if encoded.name in self.skipped:
                continue
            self._tried += 1
            try:
                image = ImageRef(encoded.name, "", str(len(encoded.content)), partial(bytes, encoded.content))
                pixels = decode_fitted(image, self._size, self._how).transpose(2, 0, 1)
            except DecodeError as error:
                self.skipped[encoded.name] = error.reason
            else:
                self._require_few_broken()
                return pixels[:, :, ::-1] if block.mirrored[start] else pixels
        raise DataError(f"{self.source}: none of {len(block.images)} neighbours is readable: {summarize(self.skipped)}")

    def _require_few_broken(self) -> None:
        if self._tried >= _TRIED and len(self.skipped) > BROKEN_LIMIT * self._tried:
            raise DataError(
                f"{self.source}: {len(self.skipped)} of {self._tried} images can't be decoded, more than "
                f"{BROKEN_LIMIT:.0%}; repair or remove them: {summarize(self.skipped)}"
            )

    # Lanes

    def _of_lane(self, lane: int) -> range:
        """The shards of a lane."""
        return range(lane, len(self.shards), self.lanes)

    def _length(self, lane: int, number: int) -> int:
        """Images of a lane's block: the first is shorter, in each lane by another share: not all end at once."""
        return self._block if number else max(1, -(-self._block * (lane + 1) // self.lanes))

    def _blocks(self, lane: int, position: ShardPosition) -> Iterator[_Block]:
        """Yield the blocks of a lane from that of `position` on, without an end."""
        number, begins = position[0], (position[1], position[2], position[3])
        images: list[Encoded] = []
        for here, encoded in self._images(lane, *begins):
            if len(images) == self._length(lane, number):
                yield self._shuffled(lane, number, begins, images)
                number, begins, images = number + 1, here, []
            images.append(encoded)

    def _shuffled(self, lane: int, number: int, begins: tuple[int, int, int], images: list[Encoded]) -> _Block:
        order = self._random(_ORDER, lane, number).permutation(len(images))
        chances = self._random(_FLIPS, lane, number).random(len(images))
        return _Block(number, begins, images, order, chances < (0.5 if self._flip else 0.0))

    def _images(self, lane: int, turn: int, place: int, row: int) -> Iterator[tuple[tuple[int, int, int], Encoded]]:
        """Yield a lane's images, each with its pass, the place of its shard in the pass, and its row."""
        shards = self._of_lane(lane)
        while True:
            order = self._random(_SHARDS, lane, turn).permutation(len(shards))
            found = row > 0 or place > 0
            for at in range(place, len(shards)):
                for number, encoded in self._shards.read(shards[order[at]], row):
                    found = True
                    yield (turn, at, number), encoded
                row = 0
            if not found:
                raise DataError(f"{self.source} holds no images: none is in {single_line(self.shards[shards[0]])}")
            turn, place = turn + 1, 0

    def _random(self, stream: int, lane: int, number: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self._seed, lane, number], spawn_key=(stream,)))


@dataclass
class _Lane:
    """A lane's images, one after the other; the block after the one in use is read meanwhile."""

    blocks: Iterator[_Block]
    taken: int
    pool: ThreadPoolExecutor
    block: _Block = field(init=False)
    coming: "Future[_Block]" = field(init=False)

    def __post_init__(self) -> None:
        self.coming = self.pool.submit(next, self.blocks)
        self._go_on()

    def _go_on(self) -> None:
        self.block = self.coming.result()
        self.coming = self.pool.submit(next, self.blocks)

    def take(self) -> tuple[_Block, int]:
        """The next image: its block, and its place there."""
        if self.taken == len(self.block.order):
            self._go_on()
            self.taken = 0
        self.taken += 1
        return self.block, self.taken - 1

    def position(self) -> ShardPosition:
        """Where the lane stands."""
        return [self.block.number, *self.block.begins, self.taken]


def _ahead(items: Generator[Item, None, None], count: int) -> Generator[Item, None, None]:
    """Yield `items`, so many of them made in a thread before they are taken."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="aecli-stream")
    coming: deque[Future[Item]] = deque()
    try:
        coming.extend(pool.submit(next, items) for _ in range(count))
        while True:
            item = coming.popleft().result()
            coming.append(pool.submit(next, items))
            yield item
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        # A read of the network may take long, and nobody waits for it here.
        if not wait([each for each in coming if not each.cancelled()], _CLOSING_SECONDS).not_done:
            items.close()
