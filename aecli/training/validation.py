"""Validation, through the same functions that `aecli eval` uses."""

import math
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aecli.data.batches import iterate, quantise
from aecli.metrics.psnr import psnr
from aecli.metrics.ssim import MIN_SIDE, ssim
from aecli.models.base import Autoencoder, Trainable
from aecli.progress import Stopped, StopRequest
from aecli.runtime.device import Placement
from aecli.runtime.distributed import Distributed
from aecli.training.inputs.image_sets import ImageSet


@dataclass(frozen=True)
class Scores:
    """Means over the validation images; None where there is nothing to take a mean of."""

    loss: float
    psnr: float | None
    ssim: float | None


def validate(
    model: Trainable,
    data: ImageSet,
    batch_size: int,
    placement: Placement,
    should_stop: StopRequest,
    distributed: Distributed,
) -> Scores:
    """Measure `model` on `data`, its reconstructions rounded to 8 bits before PSNR and SSIM.

    A prior's examples are no images, and have neither. Processes deal the batches out among them, and all measure the
    first one's batch statistics.

    Raises:
        Stopped: `should_stop` said so, in one of them.
    """
    distributed.broadcast_tensors(model.buffers())
    was_training = model.training
    model.eval()
    mine = range(distributed.rank, -(-len(data) // batch_size), distributed.world_size)
    order = np.concatenate([data.rows[:0], *(data.rows[batch * batch_size :][:batch_size] for batch in mine)])
    measured = [np.empty((0, 4))]
    stops = False
    try:
        with closing(iterate(data.nearest, order, batch_size, placement.device, placement.channels_last)) as batches:
            for number, batch in zip(mine, batches, strict=True):
                if stops := should_stop():
                    break
                measured.append(_measure(model, batch, number, placement))
    finally:
        model.train(was_training)
    if any(distributed.all_gather_object(stops)):
        raise Stopped
    images = np.concatenate(distributed.all_gather(np.concatenate(measured)))
    _, losses, psnrs, ssims = images[np.argsort(images[:, 0], kind="stable")].T.tolist()
    return Scores(
        loss=sum(losses) / len(images),
        psnr=_mean([value for value in psnrs if math.isfinite(value)]),
        ssim=_mean([value for value in ssims if not math.isnan(value)]),
    )


def _measure(model: Trainable, images: Tensor, number: int, placement: Placement) -> NDArray[np.float64]:
    """A row an image: the batch's `number`, its summed loss (in the first row, 0 in the others), PSNR, SSIM or NaN."""
    rows = np.full((len(images), 4), math.nan)
    with torch.inference_mode(), placement.autocast():
        losses = model.loss(images)
        rows[:, 0], rows[:, 1] = number, 0.0
        rows[0, 1] = losses.total.item() * len(images)
        if not isinstance(model, Autoencoder):
            return rows
        output = model(images) if losses.output is None else losses.output
    reconstructions, originals = quantise(output), quantise(images)
    rows[:, 2] = psnr(originals, reconstructions).cpu().numpy()
    if min(images.shape[-2:]) >= MIN_SIDE["gaussian"]:
        rows[:, 3] = ssim(originals, reconstructions).cpu().numpy()
    return rows


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
