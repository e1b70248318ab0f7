"""Priors of a trained model, fitted on first use and stored in the folder of its run."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from aecli.data.decoding.decode import DecodeError, Pixels, decode_fitted
from aecli.data.image_ref import ImageRef
from aecli.errors import AecliError, CheckpointError, DataError, OutputError, summarize
from aecli.inference.loaded_model import LoadedModel
from aecli.progress import Listener, Notice, Progress
from aecli.runs.images import run_images
from aecli.runtime.device import place
from aecli.runtime.threads import ordered_map
from aecli.sampling.fitted_prior import FittedPrior, PriorFit, load_fitted

TASK = "fitting a prior"
_FIT_BATCH = 256  # images per update of the components: few enough for memory at any size
_ENCODE_BATCH = 32


def fitted_prior(loaded: LoadedModel, listen: Listener) -> FittedPrior:
    """Return the prior fitted to a model's latents of the images that its run was trained on.

    It is read from the run's folder; where it is missing there, or belongs to other weights, it is fitted and stored.

    Raises:
        DataError: the model's file is in no run folder, or the run's images aren't available.
    """
    run = loaded.located.run
    if run is None:
        raise DataError(f"{loaded.located.checkpoint} is in no run folder, so its training images aren't known")
    dim = int(np.prod(loaded.model.latent_shape(loaded.image_size)))
    if run.prior.exists():
        try:
            found, document = load_fitted(run.prior, dim)
            if document.get("autoencoder") == loaded.sha256:
                return found
        except CheckpointError as error:
            listen(Notice(f"{first_line(error)}: fitting it again"))
    # In fp32 whatever the precision asked for: what is stored serves every later command.
    exact = replace(loaded, placement=place(str(loaded.placement.device), "fp32"))
    prior = _fit(exact, run_images(run, "train"), listen)
    try:
        prior.save(run.prior, {"autoencoder": loaded.sha256})
    except OutputError as error:
        listen(Notice(f"the prior is not stored for next time: {first_line(error)}"))
    return prior


def _fit(loaded: LoadedModel, images: Sequence[ImageRef], listen: Listener) -> FittedPrior:
    """Fit a prior in one pass over `images`, leaving out unreadable ones with a notice; raises DataError."""
    fit, unreadable = PriorFit(), {}
    pending: list[Pixels] = []
    total = len(images)

    def decode(image: ImageRef) -> Pixels | DecodeError:
        try:
            return decode_fitted(image, loaded.image_size, loaded.fit)
        except DecodeError as error:
            return error

    with closing(ordered_map(decode, images)) as decoded:
        for done, (image, pixels) in enumerate(zip(images, decoded, strict=True), 1):
            if isinstance(pixels, DecodeError):
                unreadable[image.name] = pixels.reason
            else:
                pending.append(pixels)
            if len(pending) == _FIT_BATCH:
                fit.add(*_encode(loaded, pending))
                pending.clear()
                listen(Progress(TASK, done, total))
    if pending:
        fit.add(*_encode(loaded, pending))
    if unreadable:
        listen(Notice(f"left out {len(unreadable)} of {total} unreadable images: {summarize(unreadable)}"))
    if len(unreadable) == total:
        raise DataError("no readable image is left to fit a prior to")
    for step in fit.finish():
        if isinstance(step, FittedPrior):
            return step
        listen(Progress("choosing a mixture", *step))
    raise AssertionError("PriorFit.finish ends with a prior")


def first_line(error: AecliError) -> str:
    """The message of an error without its hint, for a notice of one line."""
    return str(error).partition("\n")[0]


def _encode(loaded: LoadedModel, images: Sequence[Pixels]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """The latents (N, …) of images uint8 (S, S, 3) and, where there is a posterior, its log variances."""
    stacked = np.stack(images).transpose(0, 3, 1, 2)
    size = loaded.device_batch_size(_ENCODE_BATCH)
    encoded = [loaded.latents(loaded.batch(stacked[start : start + size])) for start in range(0, len(stacked), size)]
    variances = [variance for _, variance in encoded if variance is not None]
    return np.concatenate([means for means, _ in encoded]), np.concatenate(variances) if variances else None
