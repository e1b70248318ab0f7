"""`aecli eval --samples`: how far sets of images are from a set of real ones, without pairing."""

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

LEAST_IMAGES = NEIGHBOURS + 1  # of each set
_AT_ONCE = 32  # images that a worker takes
_SAME = 1e-3  # of the deviation of a set's features: what is nearer than that is the same image

Features = NDArray[np.float64]


@dataclass(frozen=True)
class Memorised:
    """Median distances to the nearest training image: of the samples, of held-out photographs, and their ratio.

    A ratio well below 1 says that the samples are nearer to the training images than new photographs are.
    """

    samples: float
    held_out: float
    ratio: float | None


@dataclass(frozen=True)
class SetResult:
    """What one set of `n` samples was measured to be."""

    name: str
    n: int
    kernel_distance: float
    ci95: tuple[float, float]
    frechet_distance: float
    manifold: Manifold
    memorised: Memorised | None


@dataclass(frozen=True)
class SetReport:
    """What `aecli eval --samples` found against `n` real images, all of them `size` (height, width)."""

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


@dataclass(frozen=True)
class _Set:
    """A listed source: what it is called, and its images."""

    source: str
    images: Sequence[ImageRef]


def evaluate_sets(config: EvalConfig, listen: Listener = ignore) -> SetReport:
    """Measure each set of samples against the ground truth, on features of a network.

    All images are seen at the samples' size: real ones are brought to it as training does.

    In processes that torchrun started, all of them must call this: they share the images, and get the same report; the
    first one's `listen` hears of it.

    Raises:
        ConfigError: the sets can't be told apart, or the device is not here.
        DataError: an image can't be read (unless `--on-mismatch skip`), samples differ in size, or there are too few.
        WeightsError: the network's weights can't be had.
        PeerError: another of several processes failed.
    """
    with Distributed() as distributed:
        return _evaluate(config, distributed, listen if distributed.is_main_process else ignore)


def _evaluate(config: EvalConfig, distributed: Distributed, listen: Listener) -> SetReport:
    samples = parse_predictions(config.samples, "--samples")
    device = resolve_device(config.device)
    real = [_list(config.gt, "--gt"), *([_list(config.train, "--train")] if config.train else [])]
    drawn = [_list(each.source, "--samples") for each in samples]
    require_same_images([image for each in (*real, *drawn) for image in each.images], "--gt and --samples", distributed)
    size = _common_size(drawn)
    network = distributed.main_process_first(lambda: load_features(config.features, device, listen))
    found, unreadable = _features([*real, *drawn], size, network, device, config, distributed, listen)
    if unreadable:
        listen(Notice(f"left out, as --on-mismatch skip asks: {summarize(unreadable)}"))
    truth, train = found[0], found[1] if config.train else None
    held_out = None if train is None else float(np.median(nearest_distances(truth, train)))
    # Features of one image, seen in other company, differ in their last bits.
    is_known = train is not None and held_out is not None and held_out < _SAME * float(np.sqrt(train.var(axis=0).sum()))
    if is_known:
        listen(Notice("half of --gt is in --train: name images held out, else how near samples may be isn't known"))
    results = []
    for each, features in zip(samples, found[len(real) :], strict=True):
        distance, interval = kernel_distance(truth, features)
        memorised = None
        if train is not None and held_out is not None:
            nearest = float(np.median(nearest_distances(features, train)))
            memorised = Memorised(nearest, held_out, None if is_known else nearest / held_out)
        results.append(
            SetResult(each.name, len(features), distance, interval, frechet_distance(truth, features),
                      manifold(truth, features), memorised)
        )  # fmt: skip
    return SetReport(len(truth), size, network.name, network.kernel_name, network.frechet_name, tuple(results),
                     _definitions(network, size, config), unreadable,
                     versions() | {f"{network.name} weights sha256": network.weights_sha256})  # fmt: skip


def _list(source: str, flag: str) -> _Set:
    images = list_images(source)
    if len(images) < LEAST_IMAGES:
        raise DataError(f"{flag} {source}: {len(images)} images are too few; a set needs {LEAST_IMAGES}")
    return _Set(source, images)


def _common_size(drawn: Sequence[_Set]) -> tuple[int, int]:
    """The (height, width) that all samples have, by their headers; an unreadable one is told when it is decoded."""
    seen: dict[tuple[int, int], str] = {}
    for each in drawn:
        for image in each.images:
            try:
                seen.setdefault(image_size(image), f"{each.source}/{image.name}")
            except DecodeError:
                continue
    if len(seen) > 1:
        told = " and ".join(
            f"{single_line(name)} is {width}x{height}" for (height, width), name in list(seen.items())[:2]
        )
        raise DataError(f"--samples: {told}; images of different sizes can't be compared as sets")
    if not seen:
        raise DataError(f"--samples {drawn[0].source}: no image can be read")
    return next(iter(seen))


def _features(
    sets: Sequence[_Set],
    size: tuple[int, int],
    network: SetFeatures,
    device: torch.device,
    config: EvalConfig,
    distributed: Distributed,
    listen: Listener,
) -> tuple[list[Features], dict[str, str]]:
    """The features of each set, in the order of its images, and the unreadable ones of all, which are left out.

    A row an image is gathered from all processes: its place among the images of all sets, and its features.
    """
    turn = device_lock(device)
    images = [(each.source, image) for each in sets for image in each.images]
    places = range(len(images))
    at_once = min(config.batch_size, _AT_ONCE)

    def measure(batch: range) -> tuple[Features, dict[str, str]]:
        readable, broken = {}, {}
        for place in batch:
            source, image = images[place]
            try:
                readable[place] = resize(decode(image), *size)
            except DecodeError as error:
                if config.on_mismatch != "skip":
                    raise DataError(f"{source}/{error}; --on-mismatch skip leaves it out") from error
                broken[f"{source}/{image.name}"] = error.reason
        if not readable:
            return nothing, broken
        with turn, oom_as_device_error("a smaller --batch-size"):
            pixels = torch.from_numpy(np.stack(list(readable.values()))).to(device).permute(0, 3, 1, 2)
            features = network(pixels).double().cpu().numpy()
        return np.column_stack([list(readable), features]), broken

    nothing = np.empty((0, 1 + network.numbers))
    batches = [places[start : start + at_once] for start in places[::at_once]]
    dealt = [result for _, result in map_shared(measure, batches, "measuring", config.workers, distributed, listen)]
    rows = np.concatenate(distributed.all_gather(np.concatenate([nothing, *(rows for rows, _ in dealt)])))
    rows = rows[np.argsort(rows[:, 0])]
    ends = np.searchsorted(rows[:, 0], np.cumsum([len(each.images) for each in sets]))
    found = [np.ascontiguousarray(part[:, 1:]) for part in np.split(rows, ends[:-1])]
    for each, features in zip(sets, found, strict=True):
        if len(features) < LEAST_IMAGES:
            raise DataError(f"{each.source}: {len(features)} images can be read, too few; a set needs {LEAST_IMAGES}")
    told = distributed.all_gather_object([item for _, broken in dealt for item in broken.items()])
    return found, dict(sorted(item for each in told for item in each))


def _definitions(network: SetFeatures, size: tuple[int, int], config: EvalConfig) -> dict[str, str]:
    """One exact sentence for everything that the numbers depend on."""
    height, width = size
    definitions = {
        "features": network.definition,
        "size": f"Real images of another size are brought to {width}x{height} first, both sides at once (bilinear, "
        "antialiased), as training does.",
        network.kernel_name: "Unbiased squared MMD under (x·y/D + 1)³ over the whole sets, as KID's formula has it, "
        "with a normal 95 % interval of jackknife variance.",
        network.frechet_name: "|μ₁-μ₂|² + tr(Σ₁ + Σ₂ - 2(Σ₁Σ₂)^½), sample covariances; biased upwards for small sets, "
        "so only sets of one size compare.",
        "precision, recall, density, coverage": f"Balls to the {NEIGHBOURS}th neighbour (Kynkäänniemi et al. 2019; "
        "Naeem et al. 2020).",
    }
    if config.train:
        definitions["nearest"] = (
            f"Median distance of samples to their nearest image of {source_name(config.train)}, over that of the "
            "ground truth; well below 1 means memorised."
        )
    return definitions
