"""Validation, through the same functions that `aecli eval` uses."""

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import torch

from aecli.data.batches import iterate, quantise
from aecli.metrics.psnr import psnr
from aecli.metrics.ssim import MIN_SIDE, ssim
from aecli.models.base import Autoencoder
from aecli.runtime.device import Placement
from aecli.training.images import ImageSet, Stopped


@dataclass(frozen=True)
class Scores:
    """Means over the validation images; None where there is nothing to take a mean of."""

    loss: float
    psnr: float | None
    ssim: float | None


def validate(
    model: Autoencoder, data: ImageSet, batch_size: int, placement: Placement, should_stop: Callable[[], bool]
) -> Scores:
    """Measure `model` on `data`, its reconstructions rounded to 8 bits before PSNR and SSIM.

    Raises:
        Stopped: `should_stop` said so.
    """
    was_training = model.training
    model.eval()
    losses, psnrs, ssims = [], [], []
    try:
        with closing(
            iterate(data.nearest, data.rows, batch_size, placement.device, placement.channels_last)
        ) as batches:
            for batch in batches:
                if should_stop():
                    raise Stopped
                with torch.inference_mode(), placement.autocast():
                    batch_losses = model.loss(batch)
                    output = model(batch) if batch_losses.output is None else batch_losses.output
                losses.append(batch_losses.total.item() * len(batch))
                reconstructions = quantise(output)
                originals = quantise(batch)
                psnrs += psnr(originals, reconstructions).tolist()
                if min(batch.shape[-2:]) >= MIN_SIDE["gaussian"]:
                    ssims += ssim(originals, reconstructions).tolist()
    finally:
        model.train(was_training)
    differing = [value for value in psnrs if math.isfinite(value)]
    return Scores(loss=sum(losses) / len(psnrs), psnr=_mean(differing), ssim=_mean(ssims))


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
