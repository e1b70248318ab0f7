"""The pass over all pairs: batches of images are decoded and measured by several workers."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aecli.configs import EvalConfig
from aecli.evaluation.conversions import PairCounts
from aecli.evaluation.decoding import DecodedPair, PairDecoder
from aecli.evaluation.html_report.page import Page
from aecli.evaluation.pairing import Pair
from aecli.evaluation.per_image import MetricValues
from aecli.evaluation.unpaired import Unpaired, mismatch_error
from aecli.metrics.base import Images, LoadedMetric
from aecli.progress import Listener
from aecli.runtime.distributed import Distributed
from aecli.runtime.out_of_memory import oom_as_device_error
from aecli.runtime.work_queue import map_shared

if TYPE_CHECKING:  # imports PyTorch, which measuring without networks does without
    from aecli.metrics.feature_networks import SetFeatures

# Pixels measured at a time, whatever the size of the images. On a CPU each worker has its own batch: larger ones leave
# its core's cache.
CPU_BATCH_PIXELS = 2**19
GPU_BATCH_PIXELS = 2**21

Rows = NDArray[np.float64]
# A network's name -> features float32 (pairs, images of a pair, dim): of the ground truth, then of each prediction.
Embedded = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Measured:
    """The pairs measured, by index; the metrics' values in that order; unreadable images, and what was converted.

    And the features of their images, in that order, of each network.
    """

    pairs: dict[int, Pair]
    values: MetricValues
    features: Embedded
    unreadable: list[Unpaired]
    counts: PairCounts


@dataclass(frozen=True)
class PairMeasurer:
    """Decodes batches of `pairs`, adds them to `page`, and measures the predictions `names`; for several threads.

    `device` is one that PyTorch knows, such as `cuda:1`.
    """

    pairs: Sequence[Pair]
    names: Sequence[str]
    decoder: PairDecoder
    metrics: Mapping[str, LoadedMetric]
    networks: "Mapping[str, SetFeatures]"
    device: str
    device_lock: AbstractContextManager[Any]
    skip_unreadable: bool
    page: Page | None

    def no_counts(self) -> PairCounts:
        """Return counts of nothing."""
        return PairCounts.of(len(self.names), len(self.pairs[0].predictions))

    @property
    def columns(self) -> int:
        """Of the rows that it returns."""
        return 1 + len(self.names) * len(self.metrics)

    def __call__(self, indices: NDArray[np.intp]) -> tuple[Rows, Embedded, list[Unpaired], PairCounts]:
        """Measure pairs of one size.

        Returns:
            A row a pair: its index, then each metric's value of each prediction; the features of its images; the
            images that can't be decoded; and what was done to the others.

        Raises:
            DataError: an image can't be decoded, unless these are skipped.
            DeviceError: out of memory.
        """
        decoded = {int(index): self.decoder.decode(self.pairs[index], self.names) for index in indices}
        unreadable = [pair for pair in decoded.values() if isinstance(pair, Unpaired)]
        if unreadable and not self.skip_unreadable:
            raise mismatch_error(unreadable, ["--on-mismatch skip measures only the images that can be read"])
        readable = {index: pair for index, pair in decoded.items() if not isinstance(pair, Unpaired)}
        counts = self.no_counts()
        for index, pair in readable.items():
            counts.add([image.name for image in self.pairs[index].images], pair)
            if self.page is not None:
                self.page.add(index, pair.pixels)
        blocks = [np.empty((0, self.columns))]
        embedded = {name: [self._no_features(name)] for name in self.networks}
        for depths in dict.fromkeys(pair.depths for pair in readable.values()):
            chosen = {index: pair for index, pair in readable.items() if pair.depths == depths}
            values, features = self._measure(list(chosen.values()))
            blocks.append(np.column_stack([list(chosen), *values]))
            for name, found in features.items():
                embedded[name].append(found)
        features = {name: np.concatenate(found) for name, found in embedded.items()}
        return np.concatenate(blocks), features, unreadable, counts

    def _no_features(self, network: str) -> NDArray[np.float32]:
        return np.empty((0, 1 + len(self.names), self.networks[network].dim), dtype=np.float32)

    def _measure(self, pairs: list[DecodedPair]) -> tuple[list[Rows], Embedded]:
        """Each metric's values (N, predictions) of N pairs of the same size and depths, and the images' features."""
        height, width = pairs[0].pixels[0].shape[:2]
        held = f"{len(pairs)} images of {width}x{height} at once"
        hint = f"a smaller --batch-size, --lpips-net alex or --metrics psnr,ssim ({held})"
        pixels = _stacks([pair.pixels for pair in pairs])
        values_of_more = _stacks([pair.values for pair in pairs if pair.is_deep])
        with self.device_lock, oom_as_device_error(hint):
            rounded = self._images(pixels)
            deep = self._images(values_of_more) or rounded
            values = []
            for metric in self.metrics.values():
                truths, *predictions = deep if metric.takes_deep else rounded
                score = metric.against(truths)
                values.append(np.stack([np.asarray(score(prediction)) for prediction in predictions], axis=1))
            embedded = {name: self._embed(network, rounded) for name, network in self.networks.items()}
            return values, embedded

    def _images(self, stacks: Sequence[NDArray[Any]]) -> list[Images]:
        """Return arrays (N, H, W, 3) as (N, 3, H, W): as tensors on a CUDA device, for which all metrics have code."""
        images = [stack.transpose(0, 3, 1, 2) for stack in stacks]
        if not self.device.startswith("cuda"):
            return images
        import torch

        return [torch.from_numpy(each).to(self.device) for each in images]

    def _embed(self, network: "SetFeatures", images: Sequence[Images]) -> NDArray[np.float32]:
        """The features (N, images of a pair, dim) of N pairs."""
        import torch

        tensors = (torch.as_tensor(each, device=self.device) for each in images)
        return np.stack([network.compute(each).cpu().numpy() for each in tensors], axis=1)


def measure_pairs(measurer: PairMeasurer, config: EvalConfig, distributed: Distributed, listen: Listener) -> Measured:
    """Measure all pairs in one pass, shared by workers and processes; every process gets the same result.

    What is in a batch depends on the images alone, and so do the values.
    """
    max_pixels = CPU_BATCH_PIXELS if measurer.device == "cpu" else GPU_BATCH_PIXELS
    batches = list(_batches(measurer.pairs, config.batch_size, max_pixels))
    results = map_shared(measurer, batches, "measuring", config.workers, distributed, listen)
    rows = np.concatenate([rows for rows, *_ in results])
    order = np.argsort(rows[:, 0])
    rows = rows[order]
    width = len(measurer.names)
    counts = measurer.no_counts()
    for *_, counted in results:
        counts.update(counted)
    return Measured(
        pairs={int(index): measurer.pairs[int(index)] for index in rows[:, 0]},
        values={
            name: np.ascontiguousarray(rows[:, start : start + width])
            for start, name in zip(range(1, measurer.columns, width), measurer.metrics, strict=True)
        },
        features={
            name: np.concatenate([embedded[name] for _, embedded, _, _ in results])[order] for name in measurer.networks
        },
        unreadable=[each for _, _, unreadable, _ in results for each in unreadable],
        counts=counts,
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


def _stacks(images: Sequence[Sequence[NDArray[Any]]]) -> list[NDArray[Any]]:
    """Stack the images of each column; a large image is alone in its batch, and not copied."""
    return [np.stack(column) if len(column) > 1 else column[0][None] for column in zip(*images, strict=True)]
