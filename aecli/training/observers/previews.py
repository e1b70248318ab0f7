"""Pictures in a run folder: its curves, and images above their reconstructions."""

import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aecli.data.batches import normalise, quantise
from aecli.data.decoding.decode import Pixels
from aecli.figures.curves import draw_curves
from aecli.figures.grid import draw_rows, draw_sheet
from aecli.figures.png import png_bytes
from aecli.models.base import Autoencoder, Prior, evaluating
from aecli.storage.atomic_files import write_bytes
from aecli.training.inputs.latent_sets import LatentEncoder
from aecli.training.session import Session

CURVES_SECONDS = 15.0  # the least between two drawings of the curves, except at the end
CURVES_FRACTION = 0.02  # of the time, at most, goes into drawing curves
PREVIEW_SAMPLES, PREVIEW_STEPS = 16, 50  # of a prior
PREVIEW_IMAGES = 8  # of the validation images, and as many of the training images


def is_preview_epoch(epoch: int) -> bool:
    """Return whether an epoch has previews: the first ten, every tenth up to 100, every fiftieth."""
    return epoch <= 10 or epoch % (10 if epoch <= 100 else 50) == 0


class PreviewWriter:
    """Writes previews in some epochs, and the curves as often as that costs little time."""

    def __init__(self, session: Session) -> None:
        """The first curves may be drawn at once."""
        self._session = session
        self._next_curves = time.monotonic()

    def write_epoch(self) -> None:
        """Write the pictures that are due after an epoch; raises OutputError."""
        is_done = self._session.is_done
        if is_done or is_preview_epoch(self._session.state.counters.epoch):
            write_preview(self._session)
        if is_done or time.monotonic() >= self._next_curves:
            self.write_curves()

    def write_curves(self) -> None:
        """Write the curves so far, and set when the next ones are due."""
        state = self._session.state
        if not state.rows:
            return
        began = time.monotonic()
        write_bytes(self._session.folder.curves, draw_curves(state.rows))
        ended = time.monotonic()
        self._next_curves = ended + max(CURVES_SECONDS, (ended - began) / CURVES_FRACTION)


def write_preview(session: Session) -> None:
    """Write some validation and training images above their reconstructions, or a prior's samples.

    The difference between validation and training shows overfitting.
    """
    state, folder = session.state, session.folder
    if session.plan.encoder:
        samples = list(_sample(session, session.plan.encoder))
        write_bytes(folder.preview(state.counters.epoch), png_bytes(draw_sheet(samples)))
        return
    assert isinstance(state.model, Autoencoder)  # for the type checker: a prior has an encoder
    title = f"{type(state.model).__name__} keeps {state.model.kept(session.config.data.image_size)}"
    rows = []
    sets = {
        "Validation": session.inputs.val.evenly_spaced(PREVIEW_IMAGES),
        "Training": session.inputs.loader.preview_images(PREVIEW_IMAGES),
    }
    for label, originals in sets.items():
        if len(originals):
            reconstructions = _reconstruct(session, originals)
            rows += [(label, list(originals.transpose(0, 2, 3, 1))), (title, list(reconstructions))]
    write_bytes(folder.preview(state.counters.epoch), png_bytes(draw_rows(rows)))


def _sample(session: Session, encoder: LatentEncoder) -> NDArray[np.uint8]:
    """Return samples (N, S, S, 3) of the prior, of the same noise every time."""
    prior = session.state.eval_model
    assert isinstance(prior, Prior)  # for the type checker
    noise = torch.randn(PREVIEW_SAMPLES, *prior.noise_shape(), generator=torch.Generator().manual_seed(0))
    device, classes = session.plan.placement.device, len(getattr(prior.options, "classes", ()))
    of_class: dict[str, Any] = {}
    if classes:
        of_class["labels"] = torch.arange(PREVIEW_SAMPLES, device=device) % classes
    with evaluating(prior), torch.inference_mode():
        latents = prior.unwhiten(prior.sample(noise.to(device), PREVIEW_STEPS, **of_class))
    if not encoder.makes_codes:
        latents = latents.reshape(-1, *encoder.loaded.model.latent_shape(encoder.loaded.image_size))
    pictures: NDArray[np.uint8] = encoder.loaded.decode(latents).permute(0, 2, 3, 1).numpy()
    return pictures


def _reconstruct(session: Session, originals: Pixels) -> NDArray[np.uint8]:
    """Return the reconstructions (N, S, S, 3) of uint8 (N, 3, S, S)."""
    placement, model = session.plan.validation_placement, session.state.eval_model
    batch = normalise(torch.from_numpy(originals).to(placement.device))
    with evaluating(model), torch.inference_mode(), placement.autocast():
        reconstructions = quantise(model(batch.contiguous(memory_format=placement.memory_format)))
    found: NDArray[np.uint8] = reconstructions.permute(0, 2, 3, 1).cpu().numpy()
    return found
