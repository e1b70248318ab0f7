"""How a step's batch is split: over ranks, and on each rank into micro-batches for gradient accumulation."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from aecli.configs import TrainConfig
from aecli.data.batches import rank_slice
from aecli.models.base import Trainable
from aecli.runtime.distributed import Distributed
from aecli.training.state import seed_step

_NOISE_CHUNK = 256  # images whose noise has one seed
_NOISE, _OTHER = 0, 1  # spawn keys of the seeds of further chunks, and of everything else that is random


@dataclass(frozen=True)
class MicroBatch:
    """Images (n, 3, S, S) of one forward and backward pass, and the noise that the model takes for them.

    `weight` is their fraction of the images that all ranks take in this step.
    """

    images: Tensor
    noise: Tensor | None
    weight: float
    is_last: bool


def _count_micro_batches(count: int, config: TrainConfig, world_size: int) -> int:
    """Return how many micro-batches each rank takes of a batch of `count` images: the same number on all ranks.

    A short batch has fewer micro-batches, not smaller ones.
    """
    largest = -(-(config.optimization.batch_size // world_size) // config.optimization.grad_accum)
    return -(-_smallest_part(count, world_size) // largest)


def _smallest_part(count: int, world_size: int) -> int:
    return count if count < world_size else count // world_size


def smallest_micro_batch(count: int, config: TrainConfig, world_size: int) -> int:
    """Return the size of the smallest micro-batch of a batch of `count` images, on any rank."""
    return _smallest_part(count, world_size) // _count_micro_batches(count, config, world_size)


def largest_micro_batch(config: TrainConfig, distributed: Distributed) -> int:
    """Return the size of the largest micro-batch of a whole batch, on this rank."""
    first, last = rank_slice(config.optimization.batch_size, distributed.rank, distributed.world_size)
    return -(-(last - first) // _count_micro_batches(config.optimization.batch_size, config, distributed.world_size))


def micro_batches(
    images: Tensor, count: int, step: int, model: Trainable, config: TrainConfig, distributed: Distributed
) -> Iterator[MicroBatch]:
    """Yield the micro-batches of `images` (n, 3, S, S), this rank's part of step `step`'s batch of `count`.

    Torch's global generator is seeded for each. Noise depends on an image's place in the batch, whichever rank takes
    it; all else that is random depends on (seed, step) and the number of the micro-batch.
    """
    first, _ = rank_slice(count, distributed.rank, distributed.world_size)
    micros = _count_micro_batches(count, config, distributed.world_size)
    total = count * distributed.world_size if count < distributed.world_size else count
    for number in range(micros):
        start, end = rank_slice(len(images), number, micros)
        noise = _noise(model, first + start, first + end, count, config.data.image_size, (config.run.seed, step))
        if index := distributed.rank * micros + number:
            seed_step(config.run.seed, step, _OTHER, index)
        yield MicroBatch(images[start:end], noise, (end - start) / total, number == micros - 1)


def _noise(
    model: Trainable, first: int, last: int, count: int, image_size: int, seed_and_step: tuple[int, int]
) -> Tensor | None:
    """Return the noise of the images `first` to `last` (excluded) of a batch of `count`, if the model takes any."""
    drawn = []
    for chunk in range(first // _NOISE_CHUNK, -(-last // _NOISE_CHUNK)):
        seed_step(*seed_and_step, *((_NOISE, chunk) if chunk else ()))
        begins = chunk * _NOISE_CHUNK
        noise = model.draw_noise(min(_NOISE_CHUNK, count - begins), image_size)
        if noise is None:
            return None
        drawn.append(noise[max(0, first - begins) : last - begins])
    return drawn[0] if len(drawn) == 1 else torch.cat(drawn)
