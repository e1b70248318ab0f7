"""`aecli eval --samples`: distances of sets of generated images to a set of real ones, without pairing."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aecli.configs import EvalConfig
from aecli.data.decoding.decode import DecodeError, decode, image_size, resize
from aecli.data.image_ref import ImageRef, require_same_images
from aecli.data.sources.registry import list_images
from aecli.errors import DataError, single_line, summarize
from aecli.evaluation.pairing import parse_predictions, source_name
from aecli.metrics.distribution_distances import (
    NEIGHBOURS,
    Manifold,
    frechet_distance,
    kernel_distance,
    manifold,
    nearest_distances,
)
from aecli.metrics.feature_networks import SetFeatures, load_features
from aecli.progress import Listener, Notice, ignore
from aecli.runtime.device import oom_as_device_error, resolve_device, versions
from aecli.runtime.distributed import Distributed
from aecli.runtime.threads import device_lock
from aecli.runtime.work_queue import map_shared

MIN_IMAGES = NEIGHBOURS + 1  # of each set
_BATCH = 32  # images that a worker takes at most
_SAME = 1e-3  # of the std of a set's features: at a smaller distance it is the same image

Features = NDArray[np.float64]
_Set = tuple[str, Sequence[ImageRef]]  # a source and its images


@dataclass(frozen=True)
class Memorisation:
    """Median distances to the nearest training image: of the samples, of the held-out ground truth, and their ratio.

    A ratio well below 1 means that the samples are copies: nearer to the training images than unseen images are. It is
    None where the ground truth is itself among the training images.
    """

    samples: float
    held_out: float
    ratio: float | None


@dataclass(frozen=True)
class SetResult:
    """The distances of one set of `n` samples to the real images."""

    name: str
    n: int
    kernel_distance: float
    ci95: tuple[float, float]
    frechet_distance: float
    manifold: Manifold
    memorised: Memorisation | None


@dataclass(frozen=True)
class SetReport:
    """The result of `aecli eval --samples` against `n` real images, all resized to `size` (height, width)."""

    n: int
    size: tuple[int, int]
    features: str
    kernel_name: str
    frechet_name: str
    results: tuple[SetResult, ...]
    definitions: dict[str, str]
    unreadable: dict[str, str]
    versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return it as strict JSON values."""
        return {
            "n": self.n,
            "size": list(self.size),
            "features": self.features,
            "results": [
                {
                    "name": result.name,
                    "n": result.n,
                    self.kernel_name: {"value": result.kernel_distance, "ci95": list(result.ci95)},
                    self.frechet_name: result.frechet_distance,
                    **asdict(result.manifold),
                    "memorised": asdict(result.memorised) if result.memorised else None,
                }
                for result in self.results
            ],
            "definitions": self.definitions,
            "unreadable": self.unreadable,
            "versions": self.versions,
        }


def evaluate_sets(config: EvalConfig, listen: Listener = ignore) -> SetReport:
    """Measure each set of samples against the ground truth, on features of a network.

    All images are compared at the samples' size: real ones are resized to it as training does.

    In processes started by torchrun, all of them must call this: they share the images, and get the same report; only
    the main process calls `listen`.

    Raises:
        ConfigError: two sets have the same name, or the device is not available.
        DataError: an image can't be read (unless `--on-mismatch skip`), samples differ in size, or there are too few.
        WeightsError: the network's weights are missing or damaged.
        PeerError: another process failed.
    """
    with Distributed() as distributed:
        return _evaluate(config, distributed, listen if distributed.is_main_process else ignore)


def _evaluate(config: EvalConfig, distributed: Distributed, listen: Listener) -> SetReport:
    samples = parse_predictions(config.samples, "--samples")
    device = resolve_device(config.device)
    real = [_list(config.gt, "--gt"), *([_list(config.train, "--train")] if config.train else [])]
    generated = [_list(each.source, "--samples") for each in samples]
    images = [image for _, images in (*real, *generated) for image in images]
    require_same_images(images, "--gt and --samples", distributed)
    size = _common_size(generated)
    network = distributed.main_process_first(lambda: load_features(config.features, device, listen))
    extractor = _FeatureExtractor([*real, *generated], size, network, device, config.on_mismatch == "skip")
    features, unreadable = _extract(extractor, config, distributed, listen)
    if unreadable:
        listen(Notice(f"left out because of --on-mismatch skip: {summarize(unreadable)}"))
    truth, train = features[0], features[1] if config.train else None
    held_out = None if train is None else float(np.median(nearest_distances(truth, train)))
    results = []
    for each, fake in zip(samples, features[len(real) :], strict=True):
        distance, interval = kernel_distance(truth, fake)
        memorised = None if train is None or held_out is None else _memorisation(fake, held_out, train)
        results.append(
            SetResult(each.name, len(fake), distance, interval, frechet_distance(truth, fake),
                      manifold(truth, fake), memorised)
        )  # fmt: skip
    if any(result.memorised and result.memorised.ratio is None for result in results):
        listen(Notice("at least half of --gt is in --train: without held-out images, memorisation can't be measured"))
    return SetReport(len(truth), size, network.name, network.kernel_name, network.frechet_name, tuple(results),
                     _definitions(network, size, config), unreadable,
                     versions() | {f"{network.name} weights sha256": network.weights_sha256})  # fmt: skip


def _memorisation(samples: Features, held_out: float, train: Features) -> Memorisation:
    nearest = float(np.median(nearest_distances(samples, train)))
    # Features of the same image in another batch differ in their last bits.
    is_trained_on = held_out < _SAME * float(np.sqrt(train.var(axis=0).sum()))
    return Memorisation(nearest, held_out, None if is_trained_on else nearest / held_out)


def _list(source: str, flag: str) -> _Set:
    images = list_images(source)
    if len(images) < MIN_IMAGES:
        raise _too_few(f"{flag} {source}", len(images))
    return source, images


def _too_few(source: str, count: int) -> DataError:
    return DataError(f"{source}: too few images that can be read ({count}); a set needs at least {MIN_IMAGES}")


def _common_size(sets: Sequence[_Set]) -> tuple[int, int]:
    """The (height, width) of all images, by their headers; unreadable ones are reported when they are decoded."""
    examples: dict[tuple[int, int], str] = {}
    for source, images in sets:
        for image in images:
            try:
                examples.setdefault(image_size(image), f"{source}/{image.name}")
            except DecodeError:
                continue
    if len(examples) > 1:
        two = [f"{single_line(name)} is {width}x{height}" for (height, width), name in examples.items()][:2]
        raise DataError(f"--samples: all images must have one size, but {' and '.join(two)}")
    if not examples:
        raise DataError(f"--samples {sets[0][0]}: no image can be read")
    return next(iter(examples))


class _FeatureExtractor:
    """Decodes and embeds batches of the images of all sets; called by several threads."""

    def __init__(
        self, sets: Sequence[_Set], size: tuple[int, int], network: SetFeatures, device: torch.device, skip: bool
    ) -> None:
        self.sets, self.size, self.network, self.device, self.skip = sets, size, network, device, skip
        self.images = [(source, image) for source, images in sets for image in images]
        self._device_lock = device_lock(device)

    def __call__(self, batch: range) -> tuple[Features, dict[str, str]]:
        """Return a row per image (its index among all images, its features), and why others are unreadable."""
        readable, unreadable = {}, {}
        for index in batch:
            source, image = self.images[index]
            try:
                readable[index] = resize(decode(image), *self.size)
            except DecodeError as error:
                if not self.skip:
                    raise DataError(f"{source}/{error}\nhint: --on-mismatch skip leaves it out") from error
                unreadable[f"{source}/{image.name}"] = error.reason
        if not readable:
            return np.empty((0, 1 + self.network.dim)), unreadable
        with self._device_lock, oom_as_device_error("a smaller --batch-size"):
            pixels = torch.from_numpy(np.stack(list(readable.values()))).to(self.device).permute(0, 3, 1, 2)
            features = self.network.compute(pixels).double().cpu().numpy()
        return np.column_stack([list(readable), features]), unreadable


def _extract(
    extractor: _FeatureExtractor, config: EvalConfig, distributed: Distributed, listen: Listener
) -> tuple[list[Features], dict[str, str]]:
    """The features of each set, in the order of its images, and the reasons of unreadable images, which are left out.

    Processes share the images; all get the same result.
    """
    sets, indices = extractor.sets, range(len(extractor.images))
    size = min(config.batch_size, _BATCH)
    batches = [indices[start : start + size] for start in indices[::size]]
    results = map_shared(extractor, batches, "measuring", config.workers, distributed, listen)
    rows = np.concatenate([rows for rows, _ in results])
    ends = np.searchsorted(rows[:, 0], np.cumsum([len(images) for _, images in sets]))
    features = [np.ascontiguousarray(block[:, 1:]) for block in np.split(rows, ends[:-1])]
    for (source, _), vectors in zip(sets, features, strict=True):
        if len(vectors) < MIN_IMAGES:
            raise _too_few(source, len(vectors))
    return features, dict(sorted(item for _, unreadable in results for item in unreadable.items()))


def _definitions(network: SetFeatures, size: tuple[int, int], config: EvalConfig) -> dict[str, str]:
    """One exact sentence for everything that the values depend on."""
    height, width = size
    definitions = {
        "features": network.definition,
        "size": f"Real images of another size are resized to {width}x{height} first, both sides at once (bilinear, "
        "antialiased), as training does.",
        network.kernel_name: "Unbiased squared MMD under (x·y/D + 1)³ over the whole sets, as KID's formula has it, "
        "with a normal 95 % interval of jackknife variance.",
        network.frechet_name: "|μ₁-μ₂|² + tr(Σ₁ + Σ₂ - 2(Σ₁Σ₂)^½), sample covariances; biased upwards for small sets, "
        "so only sets of the same number of images compare.",
        "precision, recall, density, coverage": f"Balls to the {NEIGHBOURS}th neighbour (Kynkäänniemi et al. 2019; "
        "Naeem et al. 2020).",
    }
    if config.train:
        definitions["nearest"] = (
            f"Median distance of samples to their nearest image of {source_name(config.train)}, over that of the "
            "ground truth; well below 1 means copies of training images."
        )
    return definitions
