"""`aecli eval --samples`: distances of sets of generated images to a set of real ones, without pairing."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from aecli.configs import EvalConfig
from aecli.data.decoding.colour import parse_colour
from aecli.data.image_ref import require_same_images
from aecli.errors import summarize
from aecli.evaluation.definitions import reading
from aecli.evaluation.pairing import parse_predictions, source_name
from aecli.evaluation.set_features import FeatureExtractor, Features, extract_features, list_set, sample_sizes
from aecli.evaluation.small_sets import small_set_notices
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
from aecli.runtime.device import resolve_device
from aecli.runtime.distributed import Distributed
from aecli.runtime.versions import versions

_SAME = 1e-3  # of the std of a set's features: at a smaller distance it is the same image


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
    """The result of `aecli eval --samples` against `n` real images, all resized to `size` (height, width).

    `conversions` says of each SOURCE what reading did to its images, as `ConversionCounts.to_json` does.
    """

    n: int
    size: tuple[int, int]
    features: str
    kernel_name: str
    frechet_name: str
    results: tuple[SetResult, ...]
    definitions: dict[str, str]
    unreadable: dict[str, str]
    versions: dict[str, str]
    conversions: dict[str, Any]

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
            "conversions": self.conversions,
            "versions": self.versions,
        }


def evaluate_sets(config: EvalConfig, listen: Listener = ignore) -> SetReport:
    """Measure each set of samples against the ground truth, on features of a network.

    All images are compared at the samples' size: real ones are resized to it as training does. Samples of several sizes
    are brought to that of the network's input, and so are real images.

    In processes started by torchrun, all of them must call this: they share the images, and get the same report; only
    the main process calls `listen`.

    Raises:
        ConfigError: two sets have the same name, or the device is not available.
        DataError: an image can't be read (unless `--on-mismatch skip`), or there are too few.
        WeightsError: the network's weights are missing or damaged.
        PeerError: another process failed.
    """
    with Distributed() as distributed:
        return _evaluate(config, distributed, listen if distributed.is_main_process else ignore)


def _evaluate(config: EvalConfig, distributed: Distributed, listen: Listener) -> SetReport:
    samples = parse_predictions(config.samples, "--samples")
    device = resolve_device(config.device)
    sources = [config.gt, *(each.source for each in samples)]
    real = [list_set(config.gt, "--gt", sources, listen)]
    real += [list_set(config.train, "--train", sources, listen)] if config.train else []
    generated = [list_set(each.source, "--samples", sources, listen) for each in samples]
    images = [image for each in (*real, *generated) for image in each.images]
    require_same_images(images, "--gt and --samples", distributed)
    network = distributed.main_process_first(lambda: load_features(config.features, device, listen))
    sizes = sample_sizes(generated)
    size = sizes[0] if len(sizes) == 1 else (network.side, network.side)
    if len(sizes) > 1:
        listen(Notice(f"--samples: images of {len(sizes)} sizes, so all are resized to {network.side}x{network.side}, "
                      f"the size of {network.name}'s input"))  # fmt: skip
    extractor = FeatureExtractor([*real, *generated], size, network, device, parse_colour(config.truth_background),
                                 config.on_mismatch == "skip")  # fmt: skip
    features, unreadable, conversions = extract_features(extractor, config, distributed, listen)
    for source, counted in conversions.items():
        for text in counted.notices(source, config.truth_background):
            listen(Notice(text))
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
    counts = {"--gt": len(truth)} | {result.name: result.n for result in results}
    for text in small_set_notices(counts, network):
        listen(Notice(text))
    if any(result.memorised and result.memorised.ratio is None for result in results):
        listen(Notice("at least half of --gt is in --train: without held-out images, memorisation can't be measured"))
    return SetReport(len(truth), size, network.name, network.kernel_name, network.frechet_name, tuple(results),
                     _definitions(network, size, len(sizes) > 1, config), unreadable,
                     versions() | {f"{network.name} weights sha256": network.weights_sha256},
                     {source: counted.to_json() for source, counted in conversions.items()})  # fmt: skip


def _memorisation(samples: Features, held_out: float, train: Features) -> Memorisation:
    nearest = float(np.median(nearest_distances(samples, train)))
    # Features of the same image in another batch differ in their last bits.
    is_trained_on = held_out < _SAME * float(np.sqrt(train.var(axis=0).sum()))
    return Memorisation(nearest, held_out, None if is_trained_on else nearest / held_out)


def _definitions(network: SetFeatures, size: tuple[int, int], is_mixed: bool, config: EvalConfig) -> dict[str, str]:
    """One exact sentence for everything that the values depend on."""
    height, width = size
    definitions = {
        "features": network.definition,
        "size": f"{'All images' if is_mixed else 'Real images of another size'} are resized to {width}x{height} first, "
        "both sides at once (bilinear, antialiased), as training does.",
        "reading": reading(config.truth_background),
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
