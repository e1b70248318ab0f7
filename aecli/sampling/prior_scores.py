"""How near a prior's samples are to held-out images: measured once for a model, and kept in the folder of its run.

Likelihoods can't be compared across kinds of priors, and say little of pictures. Compared is the kernel distance
of AlexNet's features (`kd-alex`, `metrics/distribution_distances.py`) between samples and validation images.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from aecli.data.batches import evenly_spaced
from aecli.data.decoding.decode import DecodeError
from aecli.data.image_ref import ImageRef
from aecli.errors import DataError, OutputError
from aecli.inference.loaded_model import LoadedModel
from aecli.metrics.distribution_distances import kernel_distance
from aecli.metrics.feature_networks import SetFeatures, alex_features
from aecli.progress import Listener, Notice, Progress
from aecli.runs.images import run_images
from aecli.sampling.latent_prior import LatentPrior
from aecli.storage import atomic_files
from aecli.storage.schema import Schema, checked
from aecli.storage.strict_json import SCHEMA, is_count, is_number, read_json, require_known_schema

SAMPLES, LEAST_SAMPLES = 256, 64
LEAST_IMAGES, MOST_IMAGES = 32, 1000
_PIXELS = 2**22  # of all samples of a prior: 256 of 128², 64 of 256²
_BATCH = 16  # images at once


def _are_distances(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(map(is_number, value.values()))


def _are_texts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(each, str) for each in value.values())


@dataclass(frozen=True)
class PriorScores(Schema):
    """`distances` (kd-alex) of priors by name, from `samples` of each to `images`.

    `weights` holds the SHA-256 of the autoencoder's and of AlexNet's weights, and what identifies a flow.
    """

    distances: dict[str, float] = checked(_are_distances)
    samples: int = checked(is_count)
    images: int = checked(is_count)
    weights: dict[str, str] = checked(_are_texts)

    @property
    def best(self) -> str:
        """The name of the nearest prior."""
        return min(self.distances, key=self.distances.__getitem__)


def held_out_images(loaded: LoadedModel) -> list[ImageRef] | None:
    """Return validation images of the model's run, at most 1,000; None if there are fewer than 32."""
    run = loaded.located.run
    try:
        images = [] if run is None else run_images(run, "val")
    except DataError:
        return None
    chosen = [images[index] for index in evenly_spaced(len(images), MOST_IMAGES)]
    return chosen if len(chosen) >= LEAST_IMAGES else None


def measured_priors(
    loaded: LoadedModel, images: Sequence[ImageRef], priors: Sequence[LatentPrior], listen: Listener
) -> PriorScores | None:
    """Return how near samples of `priors` are to `images`, which are held out.

    It is read from the run's folder; where it is missing there, or of other priors, it is measured and stored. None
    where fewer than 32 of the images can be read.
    """
    run = loaded.located.run
    assert run is not None  # it has the images
    device = loaded.placement.device
    network = alex_features(device, listen)
    weights = {"autoencoder": loaded.sha256, "features": network.weights_sha256}
    weights |= {each.name: each.fingerprint for each in priors if each.flow is not None}
    kept = _read(run.prior_scores)
    if kept is not None and kept.weights == weights and kept.distances.keys() == {each.name for each in priors}:
        return kept
    real = _real_features(loaded, images, network, listen)
    if real is None:
        return None
    samples = max(LEAST_SAMPLES, min(SAMPLES, _PIXELS // loaded.image_size**2))
    distances = {}
    for prior in priors:
        batches = []
        for start in range(0, samples, _BATCH):
            latents = prior.sample(range(start, start + _BATCH))
            batches.append(_features(network, loaded.decode(latents), device))
            listen(Progress(f"measuring {prior.name}", start + _BATCH, samples))
        distances[prior.name] = kernel_distance(real, np.concatenate(batches))[0]
    scores = PriorScores(distances, samples, len(real), weights)
    try:
        atomic_files.write_bytes(
            run.prior_scores, (json.dumps({"schema": SCHEMA, **asdict(scores)}, indent=2) + "\n").encode()
        )
    except OutputError as error:
        listen(Notice(f"what was measured of the priors is not stored: {error.headline}"))
    return scores


def _real_features(
    loaded: LoadedModel, images: Sequence[ImageRef], network: SetFeatures, listen: Listener
) -> NDArray[np.float64] | None:
    """Return the features (N, 256) of the images that can be read; None if they are too few."""
    device, one_size = loaded.placement.device, loaded.of_one_size("samples have")
    pixels, features = [], []
    for number, image in enumerate(images, 1):
        try:
            pixels.append(one_size.read_image(image).pixels)
        except DecodeError:
            pass  # training has told of it
        if pixels and (len(pixels) == _BATCH or number == len(images)):
            features.append(_features(network, torch.from_numpy(np.stack(pixels).transpose(0, 3, 1, 2)), device))
            pixels.clear()
            listen(Progress("measuring validation images", number, len(images)))
    found = np.concatenate(features) if features else np.empty((0, network.dim))
    return found if len(found) >= LEAST_IMAGES else None


def _features(network: SetFeatures, images: torch.Tensor, device: torch.device) -> NDArray[np.float64]:
    features: NDArray[np.float64] = network.compute(images.to(device)).double().cpu().numpy()
    return features


def _read(path: Path) -> PriorScores | None:
    """Return what is kept; None where it is missing or unusable, and is measured again."""
    try:
        return PriorScores.from_document(require_known_schema(read_json(path)))
    except (OSError, ValueError):
        return None
