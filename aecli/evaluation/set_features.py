"""The images of sets become features of a network, one vector an image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from aecli.configs import EvalConfig
from aecli.data.decoding.colour import Colour
from aecli.data.decoding.conversions import ConversionCounts
from aecli.data.decoding.decode import DecodeError, decode, image_size, resize
from aecli.data.image_ref import ImageRef
from aecli.data.sources.registry import list_images
from aecli.errors import DataError
from aecli.evaluation.matching import leave_out
from aecli.metrics.distribution_distances import NEIGHBOURS
from aecli.metrics.feature_networks import SetFeatures
from aecli.progress import Listener
from aecli.runtime.distributed import Distributed
from aecli.runtime.out_of_memory import oom_as_device_error
from aecli.runtime.threads import device_lock
from aecli.runtime.work_queue import map_shared

MIN_IMAGES = NEIGHBOURS + 1  # of each set
_BATCH = 32  # images that a worker takes at most

Features = NDArray[np.float64]


@dataclass(frozen=True)
class ImageSet:
    """A source and its images."""

    source: str
    images: Sequence[ImageRef]


def list_set(source: str, flag: str, sources: Sequence[str], listen: Listener) -> ImageSet:
    """List a source without those of `sources` in it; raises DataError if it can't be listed or has too few images."""
    images = leave_out(list_images(source, listen), source, sources, listen)
    if len(images) < MIN_IMAGES:
        raise _too_few(f"{flag} {source}", len(images))
    return ImageSet(source, images)


def _too_few(source: str, count: int) -> DataError:
    return DataError(f"{source}: too few images that can be read ({count}); a set needs at least {MIN_IMAGES}")


def sample_sizes(sets: Sequence[ImageSet]) -> list[tuple[int, int]]:
    """Return the sizes (height, width) of all images, by their headers; unreadable ones are reported when decoded.

    Raises:
        DataError: no image can be read.
    """
    sizes: dict[tuple[int, int], None] = {}
    for each in sets:
        for image in each.images:
            try:
                sizes.setdefault(image_size(image))
            except DecodeError:
                continue
    if not sizes:
        raise DataError(f"--samples {sets[0].source}: no image can be read")
    return list(sizes)


class FeatureExtractor:
    """Decodes and embeds batches of the images of all sets; called by several threads."""

    def __init__(
        self, sets: Sequence[ImageSet], size: tuple[int, int], network: SetFeatures, device: torch.device,
        background: Colour, skip: bool,
    ) -> None:  # fmt: skip
        """`skip` leaves out images that can't be decoded."""
        self.sets, self.size, self.network, self.device, self.skip = sets, size, network, device, skip
        self.background = background
        self.images = [(each.source, image) for each in sets for image in each.images]
        self._device_lock = device_lock(device.type)

    def __call__(self, batch: range) -> tuple[Features, dict[str, str], dict[str, ConversionCounts]]:
        """Embed images.

        Returns:
            A row an image (its index among all images, its features); the reasons of unreadable ones; and what was done
            to the others, by source.
        """
        readable, unreadable, counts = {}, {}, {each.source: ConversionCounts() for each in self.sets}
        for index in batch:
            source, image = self.images[index]
            try:
                decoded = decode(image, self.background)
            except DecodeError as error:
                if not self.skip:
                    raise DataError(f"{source}/{error}\nhint: --on-mismatch skip leaves it out") from error
                unreadable[f"{source}/{image.name}"] = error.reason
                continue
            readable[index] = resize(decoded.pixels, *self.size)
            counts[source].add(image.name, decoded)
        if not readable:
            return np.empty((0, 1 + self.network.dim)), unreadable, counts
        with self._device_lock, oom_as_device_error("a smaller --batch-size"):
            pixels = torch.from_numpy(np.stack(list(readable.values()))).to(self.device).permute(0, 3, 1, 2)
            features = self.network.compute(pixels).double().cpu().numpy()
        return np.column_stack([list(readable), features]), unreadable, counts


def extract_features(
    extractor: FeatureExtractor, config: EvalConfig, distributed: Distributed, listen: Listener
) -> tuple[list[Features], dict[str, str], dict[str, ConversionCounts]]:
    """Return the features of each set, in the order of its images.

    And the reasons of unreadable images, which are left out; and what was done to the others, by source.

    Processes share the images; all get the same result.
    """
    sets, indices = extractor.sets, range(len(extractor.images))
    size = min(config.batch_size, _BATCH)
    batches = [indices[start : start + size] for start in indices[::size]]
    results = map_shared(extractor, batches, "measuring", config.workers, distributed, listen)
    rows = np.concatenate([rows for rows, _, _ in results])
    ends = np.searchsorted(rows[:, 0], np.cumsum([len(each.images) for each in sets]))
    features = [np.ascontiguousarray(block[:, 1:]) for block in np.split(rows, ends[:-1])]
    for each, vectors in zip(sets, features, strict=True):
        if len(vectors) < MIN_IMAGES:
            raise _too_few(each.source, len(vectors))
    counts = {each.source: ConversionCounts() for each in sets}
    for _, _, counted in results:
        for source, one in counted.items():
            counts[source].update(one)
    return features, dict(sorted(item for _, unreadable, _ in results for item in unreadable.items())), counts
