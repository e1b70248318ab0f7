"""A step's global batch, cut: between processes, and into pieces that one process takes one after the other."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from aecli.configs import TrainConfig
from aecli.data.batches import rank_slice
from aecli.models.base import Trainable
from aecli.runtime.distributed import Distributed
from aecli.training.state import seed_step

_DRAWN_AT_ONCE = 256  # images whose noise has one seed
_NOISE, _ELSE = 0, 1  # streams beside that of the first such images


@dataclass(frozen=True)
class MicroBatch:
    """Images (n, 3, S, S) of one forward and backward pass, with the noise that the model takes for them.

    `share` is what they are of all images that the processes take in this step, from 0 to 1.
    """

    images: Tensor
    noise: Tensor | None
    share: float
    is_last: bool


def _pieces(count: int, config: TrainConfig, size: int) -> int:
    """In how many pieces each of `size` processes takes its part of a batch of `count`: as many in all of them.

    A short batch is taken in fewer pieces, not in smaller ones.
    """
    most = -(-(config.optimization.batch_size // size) // config.optimization.grad_accum)
    return -(-_smallest_part(count, size) // most)


def _smallest_part(count: int, size: int) -> int:
    return count if count < size else count // size


def smallest_micro_batch(count: int, config: TrainConfig, size: int) -> int:
    """Images of the smallest piece of a batch of `count`, in whatever process."""
    return _smallest_part(count, size) // _pieces(count, config, size)


def largest_micro_batch(config: TrainConfig, distributed: Distributed) -> int:
    """Images of the largest piece that this process takes of a whole batch."""
    first, last = rank_slice(config.optimization.batch_size, distributed.rank, distributed.world_size)
    return -(-(last - first) // _pieces(config.optimization.batch_size, config, distributed.world_size))


def cut(
    images: Tensor, count: int, step: int, model: Trainable, config: TrainConfig, distributed: Distributed
) -> Iterator[MicroBatch]:
    """Yield the pieces of `images` (n, 3, S, S), this process's part of a batch of `count`, in step `step`.

    Torch's global generator is seeded for each: its noise is that of its places in the batch, whoever takes them; what
    else is drawn depends on (seed, step) and the number of the piece.
    """
    first, _ = rank_slice(count, distributed.rank, distributed.world_size)
    micros = _pieces(count, config, distributed.world_size)
    taken = count * distributed.world_size if count < distributed.world_size else count
    for number in range(micros):
        start, end = rank_slice(len(images), number, micros)
        noise = _noise(model, first + start, first + end, count, config.data.image_size, (config.run.seed, step))
        if index := distributed.rank * micros + number:
            seed_step(config.run.seed, step, _ELSE, index)
        yield MicroBatch(images[start:end], noise, (end - start) / taken, number == micros - 1)


def _noise(
    model: Trainable, first: int, last: int, count: int, image_size: int, seed_and_step: tuple[int, int]
) -> Tensor | None:
    """The noise of the images from `first` up to `last` of a batch of `count`."""
    drawn = []
    for chunk in range(first // _DRAWN_AT_ONCE, -(-last // _DRAWN_AT_ONCE)):
        seed_step(*seed_and_step, *((_NOISE, chunk) if chunk else ()))
        begins = chunk * _DRAWN_AT_ONCE
        noise = draw_noise(model, min(_DRAWN_AT_ONCE, count - begins), image_size)
        if noise is None:
            return None
        drawn.append(noise[max(0, first - begins) : last - begins])
    return drawn[0] if len(drawn) == 1 else torch.cat(drawn)


def draw_noise(model: Trainable, count: int, image_size: int) -> Tensor | None:
    """What `model.draw_noise` returns, but None where the model's class has a `loss` of its own that takes none."""
    takes_noise = len(inspect.signature(model.loss).parameters) > 1
    return model.draw_noise(count, image_size) if takes_noise else None
