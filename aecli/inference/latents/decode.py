"""Pictures of latents."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from aecli.configs import DecodeConfig
from aecli.data.sources.archives import check_folders
from aecli.errors import DataError, ModelError
from aecli.figures.png import encode_png
from aecli.inference.image_batches import most_workers, require_distinct_keys
from aecli.inference.latents.reading import LatentRows, LatentSet, find_latents
from aecli.inference.loaded_model import LoadedModel, load_model
from aecli.models.latent_scaling import LatentScaling
from aecli.progress import Listener, Notice, ignore
from aecli.runtime.distributed import Distributed
from aecli.runtime.threads import device_lock, worker_count
from aecli.runtime.work_queue import map_shared
from aecli.storage.atomic_files import write_bytes
from aecli.storage.outputs import prepare_output_folder

_OUTPUTS = Path("decoded")


@dataclass(frozen=True)
class DecodeResult:
    """The output folder, the number of pictures, and what their latents were scaled by."""

    out: Path
    written: int
    scaling: LatentScaling


def decode(config: DecodeConfig, listen: Listener = ignore) -> DecodeResult:
    """Write a PNG for each of the latents in a folder or file, in any of the layouts that `encode` writes.

    Under torchrun all processes must call this: they divide the latents and return the same result, and the main
    process's `listen` is called.

    Raises:
        AecliError: a model, latents or a folder can't be used; PeerError if another process failed.
    """
    with Distributed() as distributed:
        return _decode(config, distributed, listen if distributed.is_main_process else ignore)


def _decode(config: DecodeConfig, distributed: Distributed, listen: Listener) -> DecodeResult:
    loaded = load_model(config.model, config.runs, config.device, config.precision, listen)
    found = find_latents(config.latents)
    loaded = _fitting(loaded, found, config.latents)
    scaling = _scaling(config, found, loaded, listen)
    if found.sha256 not in (None, loaded.sha256):
        listen(Notice(f"{config.latents} holds latents of other weights than {loaded.located.checkpoint}"))
    out = config.out or _OUTPUTS / loaded.located.label
    names = [name for each in found.files.values() for name in each]
    require_distinct_keys(names)
    check_folders(str(config.latents), (f"{name}.png" for name in names))
    if distributed.is_main_process:
        prepare_output_folder(out, config.overwrite, listen)
    distributed.barrier()
    job = _Job(loaded, out, scaling, device_lock(loaded.placement.device.type))
    batches = found.batches(loaded.device_batch_size(config.batch_size))
    workers = most_workers(loaded, worker_count(config.workers))
    written = sum(map_shared(job.run, batches, "decoding", workers, distributed, listen))
    distributed.barrier()
    return DecodeResult(out, written, scaling)


@dataclass(frozen=True)
class _Job:
    """The work on a batch, from file to file; workers wait for each other only to use an accelerator."""

    loaded: LoadedModel
    out: Path
    scaling: LatentScaling
    lock: AbstractContextManager[Any]

    def run(self, batch: LatentRows) -> int:
        """Write the pictures of a batch, and return how many there are."""
        latents = torch.from_numpy(self.scaling.undo(batch.read()))
        with self.lock:
            pictures = self.loaded.decode(latents).numpy()
        for name, picture in zip(batch.names, pictures, strict=True):
            write_bytes(self.out / f"{name}.png", encode_png(picture))
        return len(pictures)


def _fitting(loaded: LoadedModel, found: LatentSet, path: Path) -> LoadedModel:
    """Return the model for images of the size that the latents have; ConfigError where it has other latents."""
    expected = loaded.model.latent_shape(loaded.image_size)
    if found.shape == expected:
        return loaded
    if len(found.shape) == len(expected) == 3 and found.shape[0] == expected[0]:
        side = max(found.shape[1:]) * loaded.model.size_multiple
        if loaded.model.latent_shape(side)[1:] == (max(found.shape[1:]),) * 2:  # it grows with the image
            return replace(loaded, image_size=side)
    shapes = ("×".join(map(str, shape)) for shape in (found.shape, expected))
    raise ModelError(f"{path}: latents of shape {f', where those of {loaded.name} are '.join(shapes)}")


def _scaling(config: DecodeConfig, found: LatentSet, loaded: LoadedModel, listen: Listener) -> LatentScaling:
    """Return what the latents were scaled by."""
    known = loaded.latent_scaling if found.scaling is None else found.scaling
    if found.scaling is None and config.scaling_factor is None:
        what = "not scaled" if known.is_identity else f"scaled as the model says, {known}"
        listen(Notice(f"{config.latents} doesn't say how its latents are scaled: taking them as {what}"))
    factor = known.factor if config.scaling_factor is None else (config.scaling_factor,)
    shift = known.shift if config.shift is None else (config.shift,)
    if {len(factor), len(shift)} - {1, found.shape[0]}:
        raise DataError(f"{config.latents}: a scaling of {max(len(factor), len(shift))} channels, where latents have "
                        f"{found.shape[0]}")  # fmt: skip
    return LatentScaling(factor, shift)
