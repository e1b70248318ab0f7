"""Batch loaders: of a set of images, shuffled per epoch, or of a stream."""

from collections.abc import Generator, Mapping
from typing import Any, Protocol

import numpy as np
import torch

from aecli.configs import TrainConfig
from aecli.data.batches import epoch_order, iterate, normalise, rank_slice
from aecli.data.decoding.conversions import ConversionCounts
from aecli.data.decoding.decode import Pixels
from aecli.data.orientations import epoch_orientations
from aecli.data.streams import Stream
from aecli.runtime.device import Placement
from aecli.runtime.distributed import Distributed
from aecli.training.inputs.image_sets import ImageSet
from aecli.training.state_schema import Counters

Batches = Generator[torch.Tensor, None, None]


class BatchLoader(Protocol):
    """The batches of a run; each process gets its slice of each batch."""

    batches: int  # per epoch; the last may be short
    images: int  # per epoch

    def count(self, batch: int) -> int:
        """Return the number of images in a batch, over all processes."""

    def epoch(self, counters: Counters) -> Batches:
        """Yield slices of the batches left in the epoch, float32 (n, 3, S, S) in [-1, 1] on the device."""

    def stream_positions(self) -> Mapping[int, Any] | None:
        """Return the position of each shard group after the last batch yielded; None without a stream."""

    def preview_images(self, count: int) -> Pixels:
        """Return at most `count` images uint8 (n, 3, S, S)."""

    @property
    def conversions(self) -> ConversionCounts:
        """What decoding did to images so far, where they are decoded on the fly or streamed."""

    @property
    def skipped(self) -> Mapping[str, str]:
        """Images that turned out to be unreadable during training (name → reason)."""


def epoch_batches(
    images: ImageSet,
    config: TrainConfig,
    placement: Placement,
    seed: int,
    epoch: int,
    start: int = 0,
    rank_and_size: tuple[int, int] = (0, 1),
) -> Batches:
    """Yield a rank's slices of an epoch's batches from number `start` on, float32 (n, 3, S, S) in [-1, 1].

    Order and augmentation follow from (seed, epoch).
    """
    data = config.data
    order = images.rows[epoch_order(len(images), seed, epoch)]
    orientations = epoch_orientations(len(images.images), seed, epoch, data.flip, data.turns)
    return iterate(
        images.of_epoch(seed, epoch), order, config.optimization.batch_size, placement.device,
        placement.channels_last, orientations, start, rank_and_size,
    )  # fmt: skip


class DatasetLoader:
    """Loads a set of images; the order depends only on (seed, epoch)."""

    def __init__(self, images: ImageSet, config: TrainConfig, placement: Placement, distributed: Distributed) -> None:
        """Load `images` as `config` says."""
        self._set, self._config, self._placement = images, config, placement
        self._batch_size = config.optimization.batch_size
        self._rank_and_size = (distributed.rank, distributed.world_size)
        self.images = len(images)
        self.batches = -(-len(images) // self._batch_size)

    def count(self, batch: int) -> int:
        """Return the number of images in a batch, over all processes."""
        return min(self._batch_size, self.images - batch * self._batch_size)

    def epoch(self, counters: Counters) -> Batches:
        """Yield this process's slices of the batches left in the epoch."""
        seed, start = self._config.run.seed, counters.batch
        return epoch_batches(self._set, self._config, self._placement, seed, counters.epoch, start, self._rank_and_size)

    def stream_positions(self) -> None:
        """Return None: the counters suffice to resume."""

    def preview_images(self, count: int) -> Pixels:
        """Return evenly spaced images of the set."""
        return self._set.evenly_spaced(count)

    @property
    def skipped(self) -> Mapping[str, str]:
        """Images that decoding on the fly could not read."""
        return self._set.skipped

    @property
    def conversions(self) -> ConversionCounts:
        """What decoding on the fly did to images so far."""
        return self._set.conversions


class StreamLoader:
    """Loads a stream; an epoch is `epoch_steps` batches, and the next one continues after them."""

    def __init__(
        self,
        stream: Stream,
        config: TrainConfig,
        placement: Placement,
        distributed: Distributed,
        stream_positions: list[Any] | None,
    ) -> None:
        """Load `stream`, resuming at `stream_positions`."""
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
        """Return the number of images in every batch, over all processes."""
        return self._batch_size

    def epoch(self, counters: Counters) -> Batches:
        """Yield slices of the next batches, endlessly; prefetched ones stay for the next call."""
        placement = self._placement
        for batch in self._coming:
            self._stream_positions, self._latest = batch.positions, batch.pixels.numpy()
            images = batch.pixels.to(placement.device, non_blocking=placement.device.type == "cuda")
            yield normalise(images.contiguous(memory_format=placement.memory_format))

    def close(self) -> None:
        """Stop prefetching."""
        self._coming.close()

    def stream_positions(self) -> Mapping[int, Any] | None:
        """Return the positions of the shard groups that this rank reports."""
        return self._stream_positions

    def preview_images(self, count: int) -> Pixels:
        """Return images of the latest batch."""
        return self._latest[:count]

    @property
    def skipped(self) -> Mapping[str, str]:
        """Images of the stream that could not be read."""
        return self._stream.skipped

    @property
    def conversions(self) -> ConversionCounts:
        """What decoding did to the images of the stream so far."""
        counts: ConversionCounts = self._stream.conversions
        return counts
