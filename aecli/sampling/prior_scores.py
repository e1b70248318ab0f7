"""How near a prior's samples are to held-out images: measured once for a model, and kept in the folder of its run.

Likelihoods can't be compared across kinds of priors, and say little of pictures. Compared is the kernel distance
of AlexNet's features (`kd-alex`, `metrics/distribution_distances.py`) between samples and validation images.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from aecli.data.batches import evenly_spaced
from aecli.data.image_ref import ImageRef
from aecli.errors import DataError, OutputError
from aecli.inference.image_batches import decoded_batches
from aecli.inference.loaded_model import LoadedModel
from aecli.metrics.distribution_distances import kernel_distance
from aecli.metrics.feature_networks import SetFeatures, alex_features
from aecli.progress import Listener, Notice, Progress
from aecli.runs.folder import RunFolder
from aecli.runs.images import run_images
from aecli.sampling.latent_prior import LatentPrior
from aecli.storage import atomic_files
from aecli.storage.schema import Schema, checked, is_text, map_of
from aecli.storage.strict_json import SCHEMA, is_count, is_number, read_json, require_known_schema

SAMPLES, LEAST_SAMPLES = 256, 64
LEAST_IMAGES, MOST_IMAGES = 32, 1000
_PIXELS = 2**22  # of all samples of a prior: 256 of 128², 64 of 256²
_BATCH = 16  # images at once


@dataclass(frozen=True)
class PriorScores(Schema):
    """`distances` (kd-alex) of priors by name, from `samples` of each to `images`.

    `weights` holds the SHA-256 of the autoencoder's and of AlexNet's weights, and of trained priors'.
    """

    distances: dict[str, float] = checked(map_of(is_number))
    samples: int = checked(is_count)
    images: int = checked(is_count)
    weights: dict[str, str] = checked(map_of(is_text))

    @property
    def best(self) -> str:
        """The name of the nearest prior."""
        return min(self.distances, key=self.distances.__getitem__)


def can_be_measured(loaded: LoadedModel) -> bool:
    """Whether priors of the model were measured already, or else its run has enough validation images."""
    run = loaded.located.run
    return run is not None and (run.prior_scores.exists() or len(_held_out_images(run)) >= LEAST_IMAGES)


def measured_priors(loaded: LoadedModel, priors: Sequence[LatentPrior], listen: Listener) -> PriorScores | None:
    """Return how near samples of `priors` are to validation images of the model's run, at most 1,000.

    It is read from the run's folder; where it is missing there, or of other priors, it is measured and stored. None
    where fewer than 32 of the images can be read.
    """
    run = loaded.located.run
    assert run is not None  # it has the images
    network = alex_features(loaded.placement.device, listen)
    weights = {"autoencoder": loaded.sha256, "features": network.weights_sha256}
    weights |= {each.name: each.fingerprint for each in priors if each.trained is not None}
    kept = _read(run.prior_scores)
    if kept is not None and kept.weights == weights and kept.distances.keys() == {each.name for each in priors}:
        return kept
    images = _held_out_images(run)
    one_size = loaded.of_one_size("samples have")
    task, unreadable = "measuring validation images", dict[str, str]()  # training has told of these
    pixels = decoded_batches(one_size, images, _BATCH, task, listen, unreadable)
    real = [_features(network, torch.from_numpy(batch), loaded) for batch in pixels]
    if len(images) - len(unreadable) < LEAST_IMAGES:
        return None
    samples = max(LEAST_SAMPLES, min(SAMPLES, _PIXELS // loaded.image_size**2))
    distances = {}
    for prior in priors:
        drawn = []
        for start in range(0, samples, _BATCH):
            drawn.append(_features(network, loaded.decode(prior.sample(range(start, start + _BATCH))), loaded))
            listen(Progress(f"measuring {prior.name}", start + _BATCH, samples))
        distances[prior.name] = kernel_distance(np.concatenate(real), np.concatenate(drawn))[0]
    scores = PriorScores(distances, samples, len(images) - len(unreadable), weights)
    try:
        atomic_files.write_json(run.prior_scores, {"schema": SCHEMA, **asdict(scores)})
    except OutputError as error:
        listen(Notice(f"what was measured of the priors is not stored: {error.headline}"))
    return scores


def _held_out_images(run: RunFolder) -> list[ImageRef]:
    """Return validation images of a run, at most 1,000; none where they are gone."""
    try:
        images = run_images(run, "val")
    except DataError:
        return []
    return [images[index] for index in evenly_spaced(len(images), MOST_IMAGES)]


def _features(network: SetFeatures, images: torch.Tensor, loaded: LoadedModel) -> NDArray[np.float64]:
    """Return the features (N, 256) of images uint8 (N, 3, S, S)."""
    features: NDArray[np.float64] = network.compute(images.to(loaded.placement.device)).double().cpu().numpy()
    return features


def _read(path: Path) -> PriorScores | None:
    """Return what is kept; None where it is missing or unusable, and is measured again."""
    try:
        return PriorScores.from_document(require_known_schema(read_json(path)))
    except (OSError, ValueError):
        return None
