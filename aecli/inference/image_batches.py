"""Batches of images that workers read and a model computes, cut so that results don't depend on who works on them."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from aecli.data.decoding.conversions import ConversionCounts, Decoded
from aecli.data.decoding.decode import DecodeError
from aecli.data.image_ref import ImageRef
from aecli.errors import DataError, single_line
from aecli.inference import loaded_model
from aecli.inference.loaded_model import LoadedModel
from aecli.progress import Listener, Progress
from aecli.runtime.threads import ordered_map

Item = TypeVar("Item")

_CPU_PIXELS = 2**21  # per batch, of all workers on a CPU together
_NATIVE_BATCH = 8  # images per batch on a CPU, while their sizes are unknown


@dataclass
class ReadImages:
    """Images of a batch with their pixels uint8 (3, H, W); those that can't be read (name → reason); what reading did.

    Counts hold for the readable ones.
    """

    readable: list[tuple[ImageRef, NDArray[np.uint8]]] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    counts: ConversionCounts = field(default_factory=ConversionCounts)


def read_images(images: Sequence[ImageRef], read: Callable[[ImageRef], Decoded]) -> ReadImages:
    """Read a batch with `read`, which may raise DecodeError."""
    found = ReadImages()
    for image in images:
        try:
            decoded = read(image)
        except DecodeError as error:
            found.unreadable[image.name] = error.reason
            continue
        found.counts.add(image.name, decoded)
        found.readable.append((image, decoded.pixels.transpose(2, 0, 1)))
    return found


def decoded_batches(
    loaded: LoadedModel, images: Sequence[ImageRef], size: int, task: str, listen: Listener,
    unreadable: dict[str, str], counts: ConversionCounts | None = None,
) -> Iterator[NDArray[np.uint8]]:  # fmt: skip
    """Yield images as a model reads them, uint8 (N, 3, S, S), at most `size` at once; threads decode ahead.

    Those that can't be read are left out: name and reason are added to `unreadable`. What was done to the others is
    added to `counts`. Once a batch is done with, `listen` is told how far the `task` is.
    """

    def read(image: ImageRef) -> Decoded | DecodeError:
        try:
            return loaded.read_image(image)
        except DecodeError as error:
            return error

    pending: list[NDArray[np.uint8]] = []
    with closing(ordered_map(read, images)) as decoded:
        for done, (image, found) in enumerate(zip(images, decoded, strict=True), 1):
            if isinstance(found, DecodeError):
                unreadable[image.name] = found.reason
            else:
                if counts is not None:
                    counts.add(image.name, found)
                pending.append(found.pixels.transpose(2, 0, 1))
            if pending and (len(pending) == size or done == len(images)):
                yield np.stack(pending)
                pending.clear()
                listen(Progress(task, done, len(images)))


def batch_limits(loaded: LoadedModel, batch_size: int, is_native: bool = False) -> tuple[int, int | None]:
    """Return how many images a batch has, and the maximum of pixels that a worker computes together, or None.

    Neither depends on the number of workers, nor does therefore rounding.
    """
    if loaded.placement.device.type != "cpu":
        return batch_size, None
    size = min(batch_size, _NATIVE_BATCH) if is_native else loaded.device_batch_size(batch_size)
    return size, loaded_model.WORKER_PIXELS


def equal_sized(
    items: Sequence[tuple[Item, NDArray[np.uint8]]], max_pixels: int | None
) -> Iterator[tuple[list[Item], NDArray[np.uint8]]]:
    """Yield images of one size, with pixels uint8 (N, 3, H, W): at most `max_pixels` together, or one image.

    Each of `items` is an image, or what stands for it, with its pixels (3, H, W).
    """
    sizes: dict[tuple[int, ...], list[tuple[Item, NDArray[np.uint8]]]] = {}
    for item in items:
        sizes.setdefault(item[1].shape, []).append(item)
    for (_, height, width), members in sizes.items():
        count = max(1, max_pixels // (height * width)) if max_pixels else len(members)
        for start in range(0, len(members), count):
            chosen = members[start : start + count]
            yield [image for image, _ in chosen], np.stack([pixels for _, pixels in chosen])


def most_workers(loaded: LoadedModel, wanted: int) -> int:
    """Return how many of the `wanted` workers may compute at once: on a CPU, as many as memory is for."""
    is_cpu = loaded.placement.device.type == "cpu"
    return min(wanted, _CPU_PIXELS // loaded_model.WORKER_PIXELS) if is_cpu else wanted


def require_distinct_names(images: Sequence[ImageRef]) -> None:
    """Raise DataError for images of a run's two sources that have one name."""
    names = [name for name, count in Counter(image.name for image in images).items() if count > 1]
    if names:
        raise DataError(
            f"--split all: {len(names)} training images have the name of a validation image ({single_line(names[0])})\n"
            "hint: name --split train and --split val one after the other, with two folders"
        )


def require_distinct_keys(keys: Sequence[str]) -> None:
    """Raise DataError for keys (names without suffix) of outputs that would overwrite each other."""
    repeated = [key for key, count in Counter(keys).items() if count > 1]
    if repeated:
        raise DataError(
            f"images that differ only in the suffix ({single_line(repeated[0])}.*) would overwrite each other\n"
            "hint: rename them"
        )
