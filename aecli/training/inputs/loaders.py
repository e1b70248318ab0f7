"""Where an epoch's batches come from: a set of images in an order of its own, or a stream that has no end."""

from collections.abc import Generator, Mapping
from typing import Any, Protocol

import numpy as np
import torch

from aecli.configs import TrainConfig
from aecli.data.batches import epoch_order, flips, iterate, normalise, rank_slice
from aecli.data.decoding.decode import Pixels
from aecli.data.streams import Stream
from aecli.runtime.device import Placement
from aecli.runtime.distributed import Distributed
from aecli.training.inputs.image_sets import ImageSet
from aecli.training.state_schema import Counters

Batches = Generator[torch.Tensor, None, None]


class BatchLoader(Protocol):
    """Batches of a run, of which each process gets its part."""

    batches: int  # an epoch; the last may be short
    images: int  # an epoch

    def count(self, batch: int) -> int:
        """How many images, over all processes, are in the epoch's batch of that number."""

    def epoch(self, counters: Counters) -> Batches:
        """Yield parts of the batches left in the epoch, float32 (n, 3, S, S) in [-1, 1] on the device."""

    def stream_positions(self) -> Mapping[int, Any] | None:
        """Shard group -> its position after the last batch yielded; None without a stream."""

    def preview_images(self, count: int) -> Pixels:
        """At most `count` of the images, uint8 (n, 3, S, S), to draw."""

    @property
    def skipped(self) -> Mapping[str, str]:
        """Images that turned out to be unreadable meanwhile (name → reason)."""


class DatasetLoader:
    """A set of images: epochs in an order that follows from (seed, epoch) alone."""

    def __init__(self, images: ImageSet, config: TrainConfig, placement: Placement, distributed: Distributed) -> None:
        """Take what decides on the batches."""
        self._set, self._config, self._placement = images, config, placement
        self._batch_size = config.optimization.batch_size
        self._share = (distributed.rank, distributed.world_size)
        self.images = len(images)
        self.batches = -(-len(images) // self._batch_size)

    def count(self, batch: int) -> int:
        """How many images, over all processes, are in the epoch's batch of that number."""
        return min(self._batch_size, self.images - batch * self._batch_size)

    def epoch(self, counters: Counters) -> Batches:
        """Yield this process's parts of the batches left in the epoch."""
        config, placement = self._config, self._placement
        order = self._set.rows[epoch_order(self.images, config.run.seed, counters.epoch)]
        flip = flips(len(self._set.images), config.run.seed, counters.epoch) if config.data.flip else None
        return iterate(
            self._set.nearest, order, self._batch_size, placement.device, placement.channels_last, flip, counters.batch,
            self._share,
        )  # fmt: skip

    def stream_positions(self) -> None:
        """Return None: the counters say where a set stands."""
        return

    def preview_images(self, count: int) -> Pixels:
        """Images from all over the set."""
        return self._set.evenly_spaced(count)

    @property
    def skipped(self) -> Mapping[str, str]:
        """Images that decoding on the fly could not read."""
        return self._set.skipped


class StreamLoader:
    """A stream of images: an epoch is as many steps as the options say, and the next one goes on where it ended."""

    def __init__(
        self,
        stream: Stream,
        config: TrainConfig,
        placement: Placement,
        distributed: Distributed,
        stream_positions: list[Any] | None,
    ) -> None:
        """Take what decides on the batches; the stream resumes at `stream_positions`."""
        self._stream, self._placement = stream, placement
        on_cuda = placement.device.type == "cuda"
        self._coming = stream.batches(
            rank_slice(config.optimization.batch_size, distributed.rank, distributed.world_size),
            stream_positions,
            on_cuda,
        )
        self._batch_size = config.optimization.batch_size
        self._stream_positions: Mapping[int, Any] | None = None
        self._latest = np.empty((0, 3, config.data.image_size, config.data.image_size), dtype=np.uint8)
        self.batches = config.optimization.epoch_steps
        self.images = config.optimization.epoch_steps * config.optimization.batch_size

    def count(self, _batch: int) -> int:
        """How many images, over all processes, are in every batch."""
        return self._batch_size

    def epoch(self, counters: Counters) -> Batches:
        """Yield parts of the batches to come, without an end; what was read ahead stays for the next call."""
        placement = self._placement
        for batch in self._coming:
            self._stream_positions, self._latest = batch.positions, batch.pixels.numpy()
            images = batch.pixels.to(placement.device, non_blocking=placement.device.type == "cuda")
            yield normalise(images.contiguous(memory_format=placement.memory_format))

    def close(self) -> None:
        """Stop reading ahead."""
        self._coming.close()

    def stream_positions(self) -> Mapping[int, Any] | None:
        """Positions of the shard groups that this rank reports."""
        return self._stream_positions

    def preview_images(self, count: int) -> Pixels:
        """Images of the latest batch."""
        return self._latest[:count]

    @property
    def skipped(self) -> Mapping[str, str]:
        """Images of the stream that could not be read."""
        skipped: Mapping[str, str] = self._stream.skipped
        return skipped
