"""Where the priors of a trained model are found, and fitted on first use."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np

from aecli.data.decoding.decode import DecodeError, Pixels, decode_fitted
from aecli.data.image_ref import ImageRef
from aecli.errors import CheckpointError, DataError, OutputError, summarize
from aecli.inference.loaded_model import LoadedModel
from aecli.progress import Listener, Notice, Progress
from aecli.runs.images import run_images
from aecli.runtime.device import place
from aecli.runtime.threads import ordered_map
from aecli.sampling.fitted_prior import FittedPrior, PriorFit, load_fitted

TASK = "fitting a prior"
_AT_ONCE = 256  # latents taken in at a time, and few enough that they fit in memory at any size


def fitted_prior(loaded: LoadedModel, listen: Listener) -> FittedPrior:
    """Return the priors fitted to a model's latents of the images that its run trained on.

    They are read from the run's folder; where they aren't there, or of other weights, they are fitted and kept there.

    Raises:
        DataError: the model's file lies in no run folder, or the run's images can't be had.
    """
    run = loaded.located.run
    if run is None:
        raise DataError(f"{loaded.located.checkpoint} lies in no run folder, so its training images aren't known")
    numbers = int(np.prod(loaded.model.latent_shape(loaded.image_size)))
    if run.prior.exists():
        try:
            found, document = load_fitted(run.prior, numbers)
            if document.get("autoencoder") == loaded.sha256:
                return found
        except CheckpointError as error:
            listen(Notice(f"{error}: fitting it again"))
    exact = replace(
        loaded, placement=place(str(loaded.placement.device), "fp32")
    )  # it is kept for other precisions too
    prior = _fit(exact, run_images(run, "train"), listen)
    try:
        prior.save(run.prior, {"autoencoder": loaded.sha256})
    except OutputError as error:
        listen(Notice(f"the prior is not kept for the next time: {error}"))
    return prior


def _fit(loaded: LoadedModel, images: Sequence[ImageRef], listen: Listener) -> FittedPrior:
    """Fit in one pass over `images`; those that can't be read are left out, and told of."""
    fit = PriorFit()
    unreadable: dict[str, str] = {}
    waiting: list[Pixels] = []
    total = len(images)
    size = loaded.at_once(32)

    def decode(image: ImageRef) -> Pixels | DecodeError:
        try:
            return decode_fitted(image, loaded.image_size, loaded.fit)
        except DecodeError as error:
            return error

    def take_in() -> None:
        stacked = np.stack(waiting).transpose(0, 3, 1, 2)
        codes = [loaded.latents(loaded.batch(stacked[start : start + size])) for start in range(0, len(stacked), size)]
        variances = [variance for _, variance in codes if variance is not None]
        fit.add(np.concatenate([means for means, _ in codes]), np.concatenate(variances) if variances else None)
        waiting.clear()

    with closing(ordered_map(decode, images)) as decoded:
        for done, (image, pixels) in enumerate(zip(images, decoded, strict=True), 1):
            if isinstance(pixels, DecodeError):
                unreadable[image.name] = pixels.reason
            else:
                waiting.append(pixels)
            if len(waiting) == _AT_ONCE:
                take_in()
                listen(Progress(TASK, done, total))
    if waiting:
        take_in()
    if unreadable:
        listen(Notice(f"left out {len(unreadable)} of {total} images that can't be read: {summarize(unreadable)}"))
    if len(unreadable) == total:
        raise DataError("no image is left to fit a prior to")
    try:
        for said in fit.finish():
            if isinstance(said, FittedPrior):
                return said
            listen(Progress("choosing a mixture", *said))
    except ValueError as error:
        raise DataError(f"a prior can't be fitted: {error}") from error
    raise AssertionError("a fit ends in a prior")
