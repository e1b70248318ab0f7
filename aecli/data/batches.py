"""(seed, epoch) determines an epoch's order; the order, the batches on the device."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aecli.data.decoding.decode import Pixels
from aecli.data.orientations import Orientations, oriented, oriented_batch
from aecli.data.packs.on_the_fly import OnTheFly
from aecli.data.packs.whole import Pieces, WholeImages
from aecli.runtime.threads import ordered_map

_BATCHES_AHEAD = 2

Batches = Generator[torch.Tensor, None, None]
Rows = NDArray[np.integer]


def normalise(images: torch.Tensor) -> torch.Tensor:
    """uint8 (N, 3, H, W) -> float32 in [-1, 1]: x / 127.5 - 1. Latents, of other types, are returned as they are."""
    return images.to(torch.float32).div_(127.5).sub_(1.0) if images.dtype == torch.uint8 else images


def quantise(images: torch.Tensor) -> torch.Tensor:
    """Floating-point (N, 3, H, W), [-1, 1] -> uint8: values outside are clamped, halves rounded to even."""
    return images.to(torch.float32).clamp(-1.0, 1.0).add(1.0).mul_(127.5).round_().to(torch.uint8)


def evenly_spaced(n: int, count: int) -> NDArray[np.int64]:
    """At most `count` indices below `n`, evenly spaced from the first to the last."""
    return np.linspace(0, n - 1, min(n, count)).round().astype(np.int64)


def epoch_order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of `n` images in an epoch: a permutation that depends on (n, seed, epoch) alone."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch])).permutation(n)


def iterate(
    images: NDArray[Any] | OnTheFly | Pieces | torch.Tensor,
    order: NDArray[np.integer],
    batch_size: int,
    device: torch.device | str,
    channels_last: bool = False,
    orientations: Orientations | None = None,
    start: int = 0,
    rank_and_size: tuple[int, int] = (0, 1),
) -> Generator[torch.Tensor, None, None]:
    """Yield the normalised batches of one epoch, float32 (B, 3, S, S) in [-1, 1] on `device`.

    Args:
        images: uint8 (N, 3, S, S): a memory-mapped pack, OnTheFly, Pieces, or a tensor, which may be on `device`
            already; the batches are the same, bit for bit. Latents (N, C, h, w) are not normalised.
        order: indices into `images`; a batch is the next `batch_size` of them, the last one may be smaller.
        batch_size: images in a global batch.
        device: where the batches go; bytes are transferred, and become floats there.
        channels_last: whether the batches are in that memory format.
        orientations: how images are mirrored and turned, (N,) by index into `images`; see `orientations`.
        start: the number of the first batch to yield, to resume in the middle of an epoch.
        rank_and_size: (rank, world size); each rank gets its `rank_slice` of each batch.

    Threads prefetch the next two batches (none for a tensor); closing the generator ends them.

    Raises:
        DataError: with OnTheFly, more than 1 % of the images can't be decoded.
    """
    device = torch.device(device)
    on_cuda = device.type == "cuda"
    indices = list(_batch_indices(order[start * batch_size :], batch_size, rank_and_size))
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    if isinstance(images, torch.Tensor):
        batches = _select(images, indices, orientations)
    elif isinstance(images, OnTheFly | Pieces):
        batches = _decode(images, indices, orientations, on_cuda)
    else:
        batches = _gather(images, indices, orientations, on_cuda)
    with closing(batches):
        for batch in batches:
            yield normalise(batch.to(device, non_blocking=on_cuda).contiguous(memory_format=memory_format))


def iterate_whole(
    images: WholeImages | OnTheFly, rows: NDArray[np.integer], device: torch.device | str, multiple: int
) -> Generator[tuple[torch.Tensor, tuple[int, int]], None, None]:
    """Yield whole pictures one by one, each with its own (H, W): float32 (1, 3, H', W') in [-1, 1] on `device`.

    Sides are padded to multiples of `multiple` with the last row and column repeated.

    Raises:
        DataError: as `iterate`.
    """
    with closing(ordered_map(images.__getitem__, rows, ahead=_BATCHES_AHEAD)) as pictures:
        for picture in pictures:
            height, width = picture.shape[1:]
            yield normalise(torch.from_numpy(pad_sides(picture[None], multiple)).to(device)), (height, width)


def pad_sides(images: NDArray[np.uint8], multiple: int) -> NDArray[np.uint8]:
    """Return images (N, 3, H, W) with sides that are multiples: the last row and column are repeated."""
    height, width = images.shape[-2:]
    return np.pad(images, ((0, 0), (0, 0), (0, -height % multiple), (0, -width % multiple)), mode="edge")


def rank_slice(count: int, rank: int, size: int) -> tuple[int, int]:
    """(first, last + 1) of the images that `rank` of `size` ranks takes of a batch of `count`.

    Slices are contiguous and differ by one image at most. Of fewer images than ranks, every rank takes all.
    """
    return (0, count) if count < size else (count * rank // size, count * (rank + 1) // size)


def _batch_indices(order: Rows, batch_size: int, rank_and_size: tuple[int, int]) -> Iterator[Rows]:
    """The indices of each batch that this rank takes."""
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        first, last = rank_slice(len(batch), *rank_and_size)
        yield batch[first:last]


def _gather(images: NDArray[Any], batches: list[Rows], orientations: Orientations | None, pinned: bool) -> Batches:
    images = np.asarray(images)  # indexing a np.memmap costs more for each row
    dtype = torch.from_numpy(np.empty(0, images.dtype)).dtype

    def gather(indices: Rows) -> torch.Tensor:
        return stack((images[index] for index in indices), indices, images.shape[1:], orientations, pinned, dtype)

    return ordered_map(gather, batches, workers=1, ahead=_BATCHES_AHEAD)


def _decode(images: OnTheFly | Pieces, batches: list[Rows], orientations: Orientations | None, pinned: bool) -> Batches:
    ahead = max(_BATCHES_AHEAD * max(map(len, batches), default=0), 2 * images.workers)
    with closing(images.rows(chain.from_iterable(batches), ahead)) as rows:
        for indices in batches:
            yield stack(rows, indices, images.shape[1:], orientations, pinned)


def stack(
    rows: Iterable[Pixels],
    indices: Rows,
    shape: tuple[int, ...],
    orientations: Orientations | None,
    pinned: bool,
    dtype: torch.dtype = torch.uint8,
) -> torch.Tensor:
    """Return a batch (n, *shape) of the next n of `rows`, which are the images `indices`; shape is (C, H, W).

    Channels are last in memory, as in packed rows; `orientations` (N,) are by image index.
    """
    channels, height, width = shape
    batch = torch.empty((len(indices), height, width, channels), dtype=dtype, pin_memory=pinned)
    batch = batch.permute(0, 3, 1, 2)
    # `rows` last: the next batch continues it.
    for pixels, index, row in zip(batch.numpy(), indices, rows, strict=False):
        if orientations is not None and orientations[index]:
            view = oriented(row, int(orientations[index]))
            for channel in range(channels):  # four times as fast as all three at once
                pixels[channel] = view[channel]
        else:
            pixels[:] = row
    return batch


def _select(images: torch.Tensor, batches: list[Rows], orientations: Orientations | None) -> Batches:
    if not batches:
        return
    codes = None if orientations is None else torch.from_numpy(orientations.astype(np.uint8)).to(images.device)
    has_turns = orientations is not None and bool((orientations.astype(np.uint8) > 1).any())
    order = torch.from_numpy(np.concatenate(batches).astype(np.int64)).to(images.device)  # in one transfer
    for indices in torch.split(order, [len(batch) for batch in batches]):
        rows = images[indices]
        yield rows if codes is None else oriented_batch(rows, codes[indices], has_turns)
