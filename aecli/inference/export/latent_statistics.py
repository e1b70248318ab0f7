"""How a model's latents are distributed over its training images, and how large its activations become."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from aecli.data.batches import evenly_spaced
from aecli.data.decoding.conversions import Decoded
from aecli.data.decoding.decode import DecodeError
from aecli.data.image_ref import ImageRef
from aecli.errors import DataError, count_of, summarize
from aecli.inference.loaded_model import LoadedModel
from aecli.models.latent_scaling import LatentScaling
from aecli.progress import Listener, Notice, Progress
from aecli.runtime.threads import ordered_map

_TASK = "measuring latents"
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
    moments, largest, unreadable = _Moments(), 0.0, {}
    pending: list[NDArray[np.uint8]] = []

    def read(image: ImageRef) -> Decoded | DecodeError:
        try:
            return loaded.read_image(image)
        except DecodeError as error:
            return error

    with closing(ordered_map(read, chosen)) as decoded:
        for done, (image, found) in enumerate(zip(chosen, decoded, strict=True), 1):
            if isinstance(found, DecodeError):
                unreadable[image.name] = found.reason
            else:
                pending.append(found.pixels.transpose(2, 0, 1))
            if pending and (len(pending) == loaded.device_batch_size(_BATCH) or done == len(chosen)):
                with _activations(loaded.model) as peak:
                    latents, log_variances = loaded.latents(loaded.batch(np.stack(pending)))
                    if moments.images < _ACTIVATION_IMAGES:
                        loaded.decode(torch.from_numpy(latents))
                largest = max(largest, peak.value)
                moments.add(latents, log_variances)
                pending.clear()
                listen(Progress(_TASK, done, len(chosen)))
    if unreadable:
        listen(Notice(f"left out {count_of(len(unreadable), 'unreadable image')}: {summarize(unreadable)}"))
    if not moments.images:
        raise DataError("no image to take the latents' statistics of can be read\nhint: name others with --data")
    return moments.finish(largest)


class _Moments:
    """Sums over latents (N, C, …), in float64, a channel each."""

    def __init__(self) -> None:
        self.images, self._count = 0, 0
        self._sum: Any = 0.0
        self._squares: Any = 0.0

    def add(self, latents: NDArray[np.float32], log_variances: NDArray[np.float32] | None) -> None:
        flat = latents.reshape(*latents.shape[:2], -1).astype(np.float64)
        self.images += len(flat)
        self._count += flat.shape[0] * flat.shape[2]
        self._sum += flat.sum((0, 2))
        self._squares += np.square(flat).sum((0, 2))
        if log_variances is not None:
            self._squares += np.exp(log_variances.reshape(flat.shape).astype(np.float64)).sum((0, 2))

    def finish(self, largest_activation: float) -> LatentStatistics:
        mean, squares = self._sum / self._count, self._squares / self._count
        std = np.sqrt(np.maximum(squares - np.square(mean), 0))
        total_std = float(np.sqrt(max(squares.mean() - mean.mean() ** 2, 0)))
        if not (np.isfinite(total_std) and total_std > 1e-12):
            raise DataError("all latents are the same\nhint: check the model, and the images of --data")
        return LatentStatistics(self.images, tuple(map(float, mean)), tuple(map(float, std)), float(mean.mean()),
                                total_std, largest_activation)  # fmt: skip


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
