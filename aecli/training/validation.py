"""Validation, through the same functions that `aecli eval` uses."""

import math
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aecli.configs.train import DataConfig
from aecli.data.batches import evenly_spaced, iterate, iterate_whole, quantise
from aecli.metrics.lpips import LPIPS
from aecli.metrics.lpips_choice import MIN_SIDE as LPIPS_MIN_SIDE
from aecli.metrics.psnr import psnr
from aecli.metrics.ssim import MIN_SIDE, ssim
from aecli.models.base import Autoencoder, Prediction, Trainable, evaluating
from aecli.progress import Stopped, StopRequest
from aecli.runtime.device import Placement
from aecli.runtime.distributed import Distributed
from aecli.training.inputs.image_sets import ImageSet
from aecli.training.objectives import Objective

_SMALLEST_SIDE = max(*LPIPS_MIN_SIDE.values(), MIN_SIDE["gaussian"])  # of which every loss can be taken


@dataclass(frozen=True)
class Scores:
    """Means over the validation images; None where there is nothing to take a mean of."""

    loss: float | None = None
    psnr: float | None = None
    ssim: float | None = None
    lpips: float | None = None


@dataclass(frozen=True)
class ValidationMetrics:
    """What is measured: the objective without its adversarial part, PSNR, SSIM, and LPIPS (alex) of some images."""

    objective: Objective
    lpips: LPIPS | None
    most_images: int  # of which LPIPS is taken; of whole pictures, which are measured at all

    @classmethod
    def of(
        cls, model: Trainable, objective: Objective, config: DataConfig, images: int, device: torch.device
    ) -> "ValidationMetrics":
        """Load LPIPS where there are images, large enough for it; a prior has none. An objective's own is taken.

        Raises:
            WeightsError: LPIPS' weights can't be read.
        """
        has_images = images > 0 and isinstance(model, Autoencoder)
        lpips = None
        if has_images and config.image_size >= LPIPS_MIN_SIDE["alex"]:
            own = objective.perceptual
            lpips = own if own is not None and own.net == "alex" else LPIPS.from_net("alex").to(device)
        return cls(objective, lpips, config.val_images)


def validate(
    model: Trainable,
    data: ImageSet,
    metrics: ValidationMetrics,
    batch_size: int,
    placement: Placement,
    should_stop: StopRequest,
    distributed: Distributed,
) -> Scores:
    """Measure `model` on `data`, its reconstructions rounded to 8 bits before PSNR, SSIM and LPIPS.

    A prior's examples are no images, and have none of these. Processes deal the batches out among them, and all
    measure the first one's batch statistics. Whole pictures are taken one by one, and no more of them than
    `metrics.most_images`, since each may cost as much as many steps.

    Raises:
        Stopped: `should_stop` said so, in one of them.
    """
    distributed.broadcast_tensors(model.buffers())
    rows, has_lpips = data.rows, np.zeros(len(data), bool)
    has_lpips[evenly_spaced(len(data), metrics.most_images)] = True
    if data.piece_size is not None:
        batch_size, rows, has_lpips = 1, rows[has_lpips], has_lpips[has_lpips]
    mine = range(distributed.rank, -(-len(rows) // batch_size), distributed.world_size)
    order = np.concatenate([rows[:0], *(rows[batch * batch_size :][:batch_size] for batch in mine)])
    measured = [np.empty((0, _COLUMNS))]
    stops = False
    batches = _batches(data, order, batch_size, placement, model.size_multiple)
    with evaluating(model), closing(batches):
        for number, (batch, size) in zip(mine, batches, strict=True):
            if stops := should_stop():
                break
            chosen = has_lpips[number * batch_size :][:batch_size]
            measured.append(_measure(model, metrics, batch, size, number, chosen, placement))
    if any(distributed.all_gather_object(stops)):
        raise Stopped
    images = np.concatenate(distributed.all_gather(np.concatenate(measured)))
    _, losses, psnrs, ssims, distances = images[np.argsort(images[:, 0], kind="stable")].T.tolist()
    return Scores(
        loss=sum(losses) / len(images),
        psnr=_mean([value for value in psnrs if math.isfinite(value)]),
        ssim=_mean([value for value in ssims if not math.isnan(value)]),
        lpips=_mean([value for value in distances if not math.isnan(value)]),
    )


_COLUMNS = 5  # of a row of `_measure`
Size = tuple[int, int]  # (H, W) of the images of a batch, whose sides may be padded


def _batches(
    data: ImageSet, order: NDArray[np.integer], batch_size: int, placement: Placement, multiple: int
) -> Generator[tuple[Tensor, Size], None, None]:
    """Yield batches and their images' size; whole pictures one by one, padded to multiples of `multiple`."""
    if data.whole is not None:
        with closing(iterate_whole(data.whole, order, placement.device, multiple)) as pictures:
            for picture, size in pictures:
                yield picture.contiguous(memory_format=placement.memory_format), size
        return
    with closing(iterate(data.nearest, order, batch_size, placement.device, placement.channels_last)) as batches:
        for batch in batches:
            yield batch, (batch.shape[-2], batch.shape[-1])


def _cropped(prediction: Prediction, size: Size) -> Prediction:
    """Return the prediction without padding, which it keeps where no loss could be taken without it."""
    height, width = size
    if tuple(prediction.output.shape[-2:]) == size or min(size) < _SMALLEST_SIDE:
        return prediction
    output, target = (each[..., :height, :width] for each in (prediction.output, prediction.target))
    return replace(prediction, output=output, target=target)


def _measure(
    model: Trainable, metrics: ValidationMetrics, images: Tensor, size: Size, number: int, has_lpips: NDArray[np.bool_],
    placement: Placement,
) -> NDArray[np.float64]:  # fmt: skip
    """A row an image: the batch's `number`, its summed loss (in the first row; 0 in the others), the metrics or NaN.

    What lies beyond `size` is padding, and not measured. LPIPS is measured of the images that `has_lpips`.
    """
    rows = np.full((len(images), _COLUMNS), math.nan)
    with torch.inference_mode():
        with placement.autocast():
            prediction = model.predict(images)
        rows[:, 0], rows[:, 1] = number, 0.0
        rows[0, 1] = metrics.objective.validation_loss(_cropped(prediction, size)).total.item() * len(images)
    if not isinstance(model, Autoencoder):
        return rows
    height, width = size
    reconstructions, originals = (quantise(each[..., :height, :width]) for each in (prediction.output, images))
    rows[:, 2] = psnr(originals, reconstructions).cpu().numpy()
    if min(size) >= MIN_SIDE["gaussian"]:
        rows[:, 3] = ssim(originals, reconstructions).cpu().numpy()
    if metrics.lpips is not None and has_lpips.any() and min(size) >= LPIPS_MIN_SIDE["alex"]:
        chosen = torch.from_numpy(np.flatnonzero(has_lpips)).to(images.device)
        rows[has_lpips, 4] = metrics.lpips(originals[chosen], reconstructions[chosen]).numpy()
    return rows


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
