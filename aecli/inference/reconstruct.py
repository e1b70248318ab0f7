"""Reconstructions of images as PNG files, and their latents."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aecli.configs import ReconstructConfig
from aecli.data.decoding.decode import DecodeError, decode, decode_fitted
from aecli.data.image_ref import file_paths, require_same_images
from aecli.data.sources.registry import ImageRef
from aecli.errors import DataError, single_line
from aecli.figures.png import encode_png
from aecli.inference import loaded_model
from aecli.inference.latent_file import LatentStore, open_latent_store
from aecli.inference.loaded_model import MEMORY_HINT, LoadedModel, load_model
from aecli.progress import Listener, ignore
from aecli.runs.images import choose_images
from aecli.runtime.distributed import Distributed
from aecli.runtime.threads import device_lock, worker_count
from aecli.runtime.work_queue import map_shared
from aecli.storage.atomic_files import write_bytes
from aecli.storage.outputs import forbid_overwriting_inputs, prepare_output_folder
from aecli.storage.strict_json import SCHEMA

_CPU_PIXELS = 2**21  # per batch, of all workers on a CPU together
_NATIVE_BATCH = 8  # images per batch on a CPU, while their sizes are unknown


@dataclass(frozen=True)
class ReconstructResult:
    """The output folder, the number of images written, unreadable ones (name → reason), and the file of latents."""

    out: Path
    written: int
    unreadable: dict[str, str]
    latents: Path | None = None


def reconstruct(config: ReconstructConfig, listen: Listener = ignore) -> ReconstructResult:
    """Write a PNG for every input image under its own relative path; unreadable ones are skipped and named.

    Under torchrun all processes must call this: they divide the images and return the same result, and the main
    process's `listen` is called.

    Raises:
        AecliError: a model, images or a folder can't be used; PeerError if another process failed.
    """
    with Distributed() as distributed:
        return _reconstruct(config, distributed, listen if distributed.is_main_process else ignore)


def _reconstruct(config: ReconstructConfig, distributed: Distributed, listen: Listener) -> ReconstructResult:
    loaded = load_model(config.model, config.runs, config.device, config.precision)
    images = choose_images(loaded.located, config.data, config.split)
    _require_distinct_names(images)
    out = config.out or Path("reconstructions") / loaded.located.label
    if distributed.is_main_process:
        prepare_output_folder(out, config.overwrite, listen)
        forbid_overwriting_inputs("--out", (out / f"{image.key}.png" for image in images), file_paths(images))
    with open_latent_store(config.latents, loaded.model.latent_shape(loaded.image_size), images, distributed) as store:
        distributed.barrier()
        require_same_images(images, config.data or f"{loaded.located.label}'s run", distributed)
        batches, max_workers, max_pixels = _split(images, config, loaded)
        hint = f"a smaller --batch-size than {config.batch_size}, --workers 1, {MEMORY_HINT}"
        job = _Job(loaded, out, store, config.native, max_pixels, hint, device_lock(loaded.placement.device))
        workers = min(worker_count(config.workers), max_workers)
        results = map_shared(job.run, batches, "reconstructing", workers, distributed, listen)
        unreadable = {name: reason for reasons in results for name, reason in reasons.items()}
        if store is not None and distributed.is_main_process:
            readable = [image for image in images if image.name not in unreadable]
            document = {"schema": SCHEMA, "model": loaded.name, "image_size": loaded.image_size, "fit": loaded.fit}
            store.write(readable, document, listen)
        distributed.barrier()
    return ReconstructResult(out, len(images) - len(unreadable), unreadable, config.latents)


@dataclass(frozen=True)
class _Job:
    """The work on a batch, from file to file; workers wait for each other only to use an accelerator."""

    loaded: LoadedModel
    out: Path
    store: LatentStore | None
    native: bool
    max_pixels: int | None
    hint: str
    lock: AbstractContextManager[Any]

    def run(self, batch: Sequence[ImageRef]) -> dict[str, str]:
        """Write the reconstructions, and latents, of a batch; return unreadable images (name → reason)."""
        readable, unreadable = self._decode(batch)
        for keys, images in _equal_sized(readable, self.max_pixels):
            with self.lock:
                reconstructions = self.loaded.reconstruct(images, self.hint)
                if self.store is not None:
                    self.store.add(keys, *self.loaded.latents(self.loaded.batch(images), self.hint))
            for key, pixels in zip(keys, reconstructions, strict=True):
                write_bytes(self.out / f"{key}.png", encode_png(pixels))
        return unreadable

    def _decode(self, batch: Sequence[ImageRef]) -> tuple[list[tuple[str, np.ndarray]], dict[str, str]]:
        """Return (key, uint8 (3, H, W)) of the readable images, and the unreadable ones (name → reason)."""
        readable, unreadable = [], {}
        for image in batch:
            try:
                loaded = self.loaded
                decoded = decode(image) if self.native else decode_fitted(image, loaded.image_size, loaded.fit)
                readable.append((image.key, decoded.pixels.transpose(2, 0, 1)))
            except DecodeError as error:
                unreadable[image.name] = error.reason
        return readable, unreadable


def _split(
    images: Sequence[ImageRef], config: ReconstructConfig, loaded: LoadedModel
) -> tuple[list[Sequence[ImageRef]], int, int | None]:
    """Return the batches, the maximum of workers, and the maximum of pixels that a worker computes together, or None.

    None of them depends on the number of workers, nor does therefore rounding.
    """
    size, max_workers, max_pixels = config.batch_size, len(images), None
    if loaded.placement.device.type == "cpu":
        size = min(size, _NATIVE_BATCH) if config.native else loaded.device_batch_size(size)
        max_pixels = loaded_model.WORKER_PIXELS
        max_workers = _CPU_PIXELS // max_pixels
    return [images[start : start + size] for start in range(0, len(images), size)], max_workers, max_pixels


def _require_distinct_names(images: Sequence[ImageRef]) -> None:
    """Refuse images whose reconstructions would overwrite each other."""
    names = [name for name, count in Counter(image.name for image in images).items() if count > 1]
    if names:
        raise DataError(
            f"--split all: {len(names)} training images have the name of a validation image ({single_line(names[0])})\n"
            "hint: reconstruct --split train and --split val into two folders"
        )
    keys = [key for key, count in Counter(image.key for image in images).items() if count > 1]
    if keys:
        raise DataError(
            f"images that differ only in the suffix ({single_line(keys[0])}.*) would overwrite each other\n"
            "hint: rename them"
        )


def _equal_sized(
    items: Sequence[tuple[str, np.ndarray]], max_pixels: int | None
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield keys and uint8 (N, 3, H, W) of images of one size, of at most `max_pixels` pixels together."""
    sizes: dict[tuple[int, ...], list[tuple[str, np.ndarray]]] = {}
    for key, pixels in items:
        sizes.setdefault(pixels.shape, []).append((key, pixels))
    for (_, height, width), members in sizes.items():
        count = max(1, max_pixels // (height * width)) if max_pixels else len(members)
        for start in range(0, len(members), count):
            chosen = members[start : start + count]
            yield [key for key, _ in chosen], np.stack([pixels for _, pixels in chosen])
