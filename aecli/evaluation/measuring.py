"""The pass over all pairs: batches of images are decoded and measured by several workers."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aecli.configs import EvalConfig
from aecli.data.decoding.decode import DecodeError, Pixels, decode, resize
from aecli.evaluation.html_report.page import Page
from aecli.evaluation.pairing import Pair
from aecli.evaluation.report import MetricValues
from aecli.evaluation.unpaired import Unpaired, mismatch_error
from aecli.metrics.base import LoadedMetric
from aecli.progress import Listener
from aecli.runtime.device import oom_as_device_error
from aecli.runtime.distributed import Distributed
from aecli.runtime.work_queue import map_shared

# Pixels measured at a time, whatever the size of the images. On a CPU each worker has its own batch: larger ones leave
# its core's cache.
CPU_BATCH_PIXELS = 2**19
GPU_BATCH_PIXELS = 2**21


@dataclass(frozen=True)
class Measured:
    """The pairs measured, by index; the metrics' values in that order; and the images that could not be decoded."""

    pairs: dict[int, Pair]
    values: MetricValues
    unreadable: list[Unpaired]


@dataclass(frozen=True)
class PairMeasurer:
    """Decodes batches of `pairs`, adds them to `page`, and measures the predictions `names`; for several threads."""

    pairs: Sequence[Pair]
    names: Sequence[str]
    metrics: Mapping[str, LoadedMetric]
    device: torch.device
    device_lock: AbstractContextManager[Any]
    skip_unreadable: bool
    page: Page | None

    @property
    def columns(self) -> int:
        """Of the rows that it returns."""
        return 1 + len(self.names) * len(self.metrics)

    def __call__(self, indices: NDArray[np.intp]) -> tuple[NDArray[np.float64], list[Unpaired]]:
        """Measure pairs of one size.

        Returns:
            A row per pair: its index, each metric's value of each prediction; and the images that can't be decoded.

        Raises:
            DataError: an image can't be decoded, unless these are skipped.
            DeviceError: out of memory.
        """
        decoded = {index: _decode(self.pairs[index], self.names) for index in indices}
        unreadable = [images for images in decoded.values() if isinstance(images, Unpaired)]
        if unreadable and not self.skip_unreadable:
            raise mismatch_error(unreadable)
        readable = {index: images for index, images in decoded.items() if not isinstance(images, Unpaired)}
        if not readable:
            return np.empty((0, self.columns)), unreadable
        values = self._measure(list(readable.values()))
        if self.page is not None:
            for index, images in readable.items():
                self.page.add(int(index), images)
        return np.column_stack([list(readable), *values]), unreadable

    def _measure(self, images: list[list[Pixels]]) -> list[NDArray[np.float64]]:
        """Each metric's values (N, predictions) of N ground truths (H, W, 3) with their predictions."""
        height, width = images[0][0].shape[:2]
        held = f"{len(images)} images of {width}x{height} at once"
        hint = f"a smaller --batch-size, --lpips-net alex or --metrics psnr,ssim ({held})"
        stacks = [np.stack(each) for each in zip(*images, strict=True)]
        with self.device_lock, oom_as_device_error(hint):
            truths, *predictions = [torch.from_numpy(stack).to(self.device).permute(0, 3, 1, 2) for stack in stacks]
            values = []
            for metric in self.metrics.values():
                score = metric.against(truths)
                values.append(np.stack([score(prediction).numpy() for prediction in predictions], axis=1))
            return values


def measure_pairs(measurer: PairMeasurer, config: EvalConfig, distributed: Distributed, listen: Listener) -> Measured:
    """Measure all pairs in one pass, shared by workers and processes; every process gets the same result.

    What is in a batch depends on the images alone, and so do the values.
    """
    max_pixels = CPU_BATCH_PIXELS if measurer.device.type == "cpu" else GPU_BATCH_PIXELS
    batches = list(_batches(measurer.pairs, config.batch_size, max_pixels))
    results = map_shared(measurer, batches, "measuring", config.workers, distributed, listen)
    rows = np.concatenate([rows for rows, _ in results])
    rows = rows[np.argsort(rows[:, 0])]
    width = len(measurer.names)
    return Measured(
        pairs={int(index): measurer.pairs[int(index)] for index in rows[:, 0]},
        values={
            name: np.ascontiguousarray(rows[:, start : start + width])
            for start, name in zip(range(1, measurer.columns, width), measurer.metrics, strict=True)
        },
        unreadable=[each for _, unreadable in results for each in unreadable],
    )


def _batches(pairs: Sequence[Pair], batch_size: int, max_pixels: int) -> Iterator[NDArray[np.intp]]:
    """Yield batches of indices of pairs of one size, each as soon as it is full."""
    waiting: dict[tuple[int, int], list[int]] = {}
    for index, pair in enumerate(pairs):
        members = waiting.setdefault(pair.size, [])
        members.append(index)
        if len(members) >= min(batch_size, max(1, max_pixels // (pair.size[0] * pair.size[1]))):
            yield np.array(waiting.pop(pair.size), dtype=np.intp)
    for members in waiting.values():
        yield np.array(members, dtype=np.intp)


def _decode(pair: Pair, names: Sequence[str]) -> list[Pixels] | Unpaired:
    """The ground truth's pixels and each prediction's, all of one size; or the image that can't be decoded."""
    images = []
    resized = (False, *pair.resized)
    for name, image, resizes in zip((None, *names), pair.images, resized, strict=True):
        try:
            pixels = decode(image)
        except DecodeError as error:
            return Unpaired(image.name, name, "unreadable", error.reason)
        if resizes:
            pixels = resize(pixels, *pair.size, method="bicubic")
        if pixels.shape[:2] != pair.size:
            return Unpaired(image.name, name, "unreadable", "its size is not the one that its header states")
        images.append(pixels)
    return images
