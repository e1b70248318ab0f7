"""How a model's latents are distributed over its training images, and how large its activations become."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aecli.data.batches import evenly_spaced
from aecli.data.image_ref import ImageRef
from aecli.errors import DataError, count_of, summarize
from aecli.inference.image_batches import decoded_batches
from aecli.inference.latents.statistics import Moments, add_moments
from aecli.inference.loaded_model import LoadedModel
from aecli.models.latent_scaling import LatentScaling
from aecli.progress import Listener, Notice

_MOST_IMAGES = 1000
_ACTIVATION_IMAGES = 16  # whose activations are looked at, those of the decoder too
_BATCH = 16
_LEAST_SHIFT = 0.1  # standard deviations: a smaller one makes up less than a hundredth of the second moment
_HALF_MARGIN = 4.0  # by which float16 must hold more than the largest activation that was seen


@dataclass(frozen=True)
class LatentStatistics:
    """Moments of the latents of `images` images; of a posterior's samples, not of its means alone.

    `mean` and `std` are one a channel, `total_mean` and `total_std` over everything. `largest_activation` is the
    largest magnitude that any layer made of some of the images, in float32.
    """

    images: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    total_mean: float
    total_std: float
    largest_activation: float

    @property
    def overflows_half(self) -> bool:
        """Whether activations may not be finite in float16, which ends at 65,504."""
        return not self.largest_activation * _HALF_MARGIN < torch.finfo(torch.float16).max

    def scaling(self) -> LatentScaling:
        """Return that to a variance of one: 1 / standard deviation, and the mean as shift where it is no trifle."""
        shift = self.total_mean if abs(self.total_mean) > _LEAST_SHIFT * self.total_std else 0.0
        return LatentScaling((1 / self.total_std,), (shift,))


def measure_latents(loaded: LoadedModel, images: Sequence[ImageRef], listen: Listener) -> LatentStatistics:
    """Encode at most 1,000 of the images, evenly spaced; unreadable ones are left out with a notice.

    Raises:
        DataError: none can be read, or all latents are the same.
    """
    loaded = loaded.of_one_size("statistics are taken of latents of", listen)
    chosen = [images[index] for index in evenly_spaced(len(images), _MOST_IMAGES)]
    largest, measured, moments = 0.0, 0, None
    unreadable: dict[str, str] = {}
    size = loaded.device_batch_size(_BATCH)
    for pixels in decoded_batches(loaded, chosen, size, "measuring latents", listen, unreadable):
        with _activations(loaded.model) as peak:
            latents, log_variances = loaded.latents(loaded.batch(pixels))
            if measured < _ACTIVATION_IMAGES:
                loaded.decode(torch.from_numpy(latents))
        largest, measured = max(largest, peak.value), measured + len(pixels)
        moments = add_moments([moments, Moments.of(latents, log_variances)])
    if unreadable:
        listen(Notice(f"left out {count_of(len(unreadable), 'unreadable image')}: {summarize(unreadable)}"))
    if moments is None:
        raise DataError("no image to take the latents' statistics of can be read\nhint: name others with --data")
    total_std = moments.overall_std
    if not (np.isfinite(total_std) and total_std > 1e-12):
        raise DataError("all latents are the same\nhint: check the model, and the images of --data")
    return LatentStatistics(measured, tuple(moments.mean.tolist()), tuple(moments.std.tolist()),
                            float(moments.mean.mean()), total_std, largest)  # fmt: skip


class _Peak:
    value = 0.0


@contextmanager
def _activations(model: nn.Module) -> Iterator[_Peak]:
    """Yield the largest magnitude of what the model's layers make inside the block."""
    peak = _Peak()

    def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point():
            peak.value = max(peak.value, float(output.abs().max()))

    handles = [module.register_forward_hook(look) for module in model.modules()]
    try:
        yield peak
    finally:
        for handle in handles:
            handle.remove()
