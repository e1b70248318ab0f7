"""(seed, epoch) gives an epoch's order; the order gives batches on the device."""

from collections.abc import Generator
from contextlib import closing

import numpy as np
import torch
from numpy.typing import NDArray

from aecli.data.decode import Pixels, ordered_map

_BATCHES_AHEAD = 2
_FLIP_STREAM = (1,)  # the order takes the parent stream


def normalise(images: torch.Tensor) -> torch.Tensor:
    """uint8 (N, 3, H, W) -> float32 in [-1, 1]: x / 127.5 - 1."""
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def quantise(images: torch.Tensor) -> torch.Tensor:
    """Floating-point (N, 3, H, W), [-1, 1] -> uint8: values beyond are clamped, halves rounded to even."""
    return images.to(torch.float32).clamp(-1.0, 1.0).add(1.0).mul_(127.5).round_().to(torch.uint8)


def epoch_order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of `n` images in an epoch: a permutation that depends on (n, seed, epoch) alone."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch])).permutation(n)


def flips(n: int, seed: int, epoch: int) -> NDArray[np.bool_]:
    """Which of `n` images an epoch mirrors left to right: one bool an image, not a position in the order."""
    generator = np.random.default_rng(np.random.SeedSequence([seed, epoch], spawn_key=_FLIP_STREAM))
    return generator.random(n) < 0.5


def iterate(
    images: Pixels,
    order: NDArray[np.integer],
    batch_size: int,
    device: torch.device | str,
    channels_last: bool = False,
    flip: NDArray[np.bool_] | None = None,
    start: int = 0,
) -> Generator[torch.Tensor, None, None]:
    """Yield the normalised batches of one epoch, float32 (B, 3, S, S) in [-1, 1] on `device`.

    Args:
        images: uint8 (N, 3, S, S), such as a memory-mapped pack.
        order: indices into `images`; a batch is the next `batch_size` of them, the last one what is left.
        batch_size: images in a batch.
        device: where the batches go. Bytes cross the bus; they become floats there.
        channels_last: the memory format of the batches.
        flip: which images are mirrored left to right, (N,) by index into `images`.
        start: the number of the first batch to yield, to go on in the middle of an epoch.

    A thread gathers the next two batches meanwhile; closing the generator ends it.
    """
    images = np.asarray(images)  # rows of a memory map, without its cost for each one
    device = torch.device(device)
    on_cuda = device.type == "cuda"

    def gather(number: int) -> torch.Tensor:
        chosen = order[number * batch_size : (number + 1) * batch_size]
        batch = torch.empty((len(chosen), *images.shape[1:]), dtype=torch.uint8, pin_memory=on_cuda)
        pixels = batch.numpy()
        for place, index in enumerate(chosen):
            pixels[place] = images[index, :, :, ::-1] if flip is not None and flip[index] else images[index]
        return batch

    count = -(-len(order) // batch_size)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    with closing(ordered_map(gather, range(start, count), workers=1, ahead=_BATCHES_AHEAD)) as batches:
        for batch in batches:
            yield normalise(batch.to(device, non_blocking=on_cuda).contiguous(memory_format=memory_format))
