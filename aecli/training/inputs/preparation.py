"""Training images for what is fitted to them before the first step, without touching what the steps draw."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from itertools import count, islice

import numpy as np
import torch
from torch import Tensor

from aecli.configs import TrainConfig
from aecli.data.batches import normalise
from aecli.data.streams import Stream
from aecli.runtime.device import Placement
from aecli.training.inputs.image_sets import ImageSet
from aecli.training.inputs.loaders import epoch_batches

_SPAWN_KEY = (5,)  # of the seed sequence [seed]; those of the steps hold an epoch or step too
_MOST_AT_ONCE = 64  # images: a global batch may be meant for many devices
_PIXELS = 2**23  # 2,048 images of 64², 128 of 256²: seconds


def preparation_limit(image_size: int) -> int:
    """Return how many images of that side suffice to be fitted to."""
    return max(1, _PIXELS // image_size**2)


def preparation_batches(
    train: ImageSet | Stream, config: TrainConfig, placement: Placement, limit: int
) -> Generator[Tensor, None, None]:
    """Yield at most `limit` training images in batches float32 (n, 3, S, S) in [-1, 1] on the device.

    They are augmented as those of the steps, but drawn by generators of their own from the run's seed, so that they
    change no step, and are whole whatever the number of processes: one process takes them. Epochs follow each other
    until there are `limit` images; without augmentation one is all, as another has the same images.

    Raises:
        DataError: images can't be read.
    """
    left = limit
    with closing(_batches(train, config, placement, limit)) as batches:
        for batch in batches:
            yield from torch.split(batch[:left], _MOST_AT_ONCE)
            left -= len(batch)
            if left <= 0:
                return


def _batches(
    train: ImageSet | Stream, config: TrainConfig, placement: Placement, limit: int
) -> Generator[Tensor, None, None]:
    seed = int(np.random.SeedSequence([config.run.seed], spawn_key=_SPAWN_KEY).generate_state(1, np.uint64)[0])
    if isinstance(train, Stream):
        stream = replace(train, seed=seed, buffer=min(train.buffer, limit))
        with closing(stream.batches((0, config.optimization.batch_size))) as coming:
            for batch in coming:
                images = batch.pixels.to(placement.device).contiguous(memory_format=placement.memory_format)
                yield normalise(images)
        return
    for epoch in islice(count(), None if config.data.augmentation else 1):
        with closing(epoch_batches(train, config, placement, seed, epoch)) as batches:
            yield from batches
