"""Priors of a trained model, fitted on first use and stored in the folder of its run."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from aecli.data.decoding.conversions import ConversionCounts
from aecli.data.image_ref import ImageRef
from aecli.errors import CheckpointError, DataError, OutputError, summarize
from aecli.inference.image_batches import decoded_batches
from aecli.inference.loaded_model import LoadedModel
from aecli.progress import Listener, Notice
from aecli.runs.images import choose_images, run_images
from aecli.runtime.device import place
from aecli.sampling.fitted_prior import FittedPrior, PriorFit, load_fitted

TASK = "fitting a prior"
_FIT_BATCH = 256  # images per update of the components; bounds memory
_ENCODE_BATCH = 32
_HINT = "put them back, or repeat the run's train command with --data and their new place"


def fitted_prior(loaded: LoadedModel, listen: Listener, data: str | None = None) -> FittedPrior:
    """Return the prior fitted to the latents of `data`, or without it of the images that a model was trained on.

    The latter is read from the run's folder; if it is missing there, or belongs to other weights, it is fitted and
    stored.

    Raises:
        DataError: the model's file is in no run folder, or the images aren't available.
    """
    if data is not None:
        images = choose_images(loaded.located, data, None, listen)
        return _fit(_exact(loaded, listen), images, data, listen)
    run = loaded.located.run
    if run is None:
        otherwise = ", or --prior normal" if loaded.model.prior_is_normal else ""
        raise DataError(f"{loaded.located.checkpoint} is in no run folder, so its training images are unknown\n"
                        f"hint: name images to fit a prior to with --data{otherwise}")  # fmt: skip
    dim = int(np.prod(loaded.model.latent_shape(loaded.image_size)))
    if run.prior.exists():
        try:
            found, document = load_fitted(run.prior, dim)
            if document.get("autoencoder") == loaded.sha256:
                return found
        except CheckpointError as error:
            listen(Notice(f"{error.headline}: fitting it again"))
    images = run_images(run, "train", hint=_HINT)
    prior = _fit(_exact(loaded, listen), images, str(run.read_config()["options"]["data"]), listen)
    try:
        prior.save(run.prior, {"autoencoder": loaded.sha256})
    except OutputError as error:
        listen(Notice(f"the fitted prior is not stored: {error.headline}"))
    return prior


def _exact(loaded: LoadedModel, listen: Listener) -> LoadedModel:
    """Return the model in fp32, because later commands of any precision use what is fitted, and at one size."""
    fixed = loaded.of_one_size("a prior is fitted to latents of", listen)
    return replace(fixed, placement=place(str(fixed.placement.device), "fp32"))


def _fit(loaded: LoadedModel, images: Sequence[ImageRef], source: str, listen: Listener) -> FittedPrior:
    """Fit a prior in one pass over `images`, leaving out unreadable ones with a notice; raises DataError."""
    fit, counts = PriorFit(), ConversionCounts()
    unreadable: dict[str, str] = {}
    for pixels in decoded_batches(loaded, images, _FIT_BATCH, TASK, listen, unreadable, counts):
        fit.add(*_encode(loaded, pixels))
    total = len(images)
    for text in counts.notices(source, loaded.background):
        listen(Notice(text))
    if unreadable:
        listen(Notice(f"left out {len(unreadable)} of {total} unreadable images: {summarize(unreadable)}"))
    if len(unreadable) == total:
        raise DataError("no readable image is left to fit a prior to")
    return fit.finish(listen)


def _encode(loaded: LoadedModel, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Return the latents (N, …) of images uint8 (N, 3, S, S) and, for a model with a posterior, its log variances."""
    size = loaded.device_batch_size(_ENCODE_BATCH)
    encoded = [loaded.latents(loaded.batch(images[start : start + size])) for start in range(0, len(images), size)]
    variances = [variance for _, variance in encoded if variance is not None]
    return np.concatenate([means for means, _ in encoded]), np.concatenate(variances) if variances else None
