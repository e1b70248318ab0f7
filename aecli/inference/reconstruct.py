"""Reconstructions of images as PNG files, and their latents."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from aecli.configs import ReconstructConfig
from aecli.data.decoding.colour import parse_colour
from aecli.data.decoding.conversions import ConversionCounts
from aecli.data.decoding.decode import DecodeError, decode
from aecli.data.image_ref import file_paths, require_same_images
from aecli.data.sources.registry import ImageRef
from aecli.errors import ConfigError, DataError, single_line
from aecli.figures.png import encode_png
from aecli.inference import loaded_model
from aecli.inference.latent_file import LatentStore, open_latent_store
from aecli.inference.loaded_model import MEMORY_HINT, LoadedModel, load_model
from aecli.progress import Listener, Notice, ignore
from aecli.runs.images import choose_images, source_of
from aecli.runtime.distributed import Distributed
from aecli.runtime.threads import device_lock, worker_count
from aecli.runtime.work_queue import map_shared
from aecli.storage.atomic_files import write_bytes
from aecli.storage.outputs import forbid_overwriting_inputs, prepare_output_folder
from aecli.storage.strict_json import SCHEMA

_OUTPUTS = Path("reconstructions")
_CPU_PIXELS = 2**21  # per batch, of all workers on a CPU together
_NATIVE_BATCH = 8  # images per batch on a CPU, while their sizes are unknown


@dataclass(frozen=True)
class ReconstructResult:
    """The output folder, the number of images written, unreadable ones (name → reason), and the file of latents.

    `image_size` and `fit` are the model's, unless the images kept their sizes. `conversions` says of the SOURCE
    what reading did to its images, as `ConversionCounts.to_json` does.
    """

    out: Path
    written: int
    unreadable: dict[str, str]
    image_size: int
    fit: str
    latents: Path | None = None
    conversions: dict[str, Any] = field(default_factory=dict)


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
    loaded = load_model(config.model, config.runs, config.device, config.precision, listen, config.image_size,
                        config.fit)  # fmt: skip
    if config.background is not None:
        loaded = replace(loaded, background=config.background)
    if config.latents is not None:
        loaded = loaded.of_one_size("--latents needs", listen)
    is_native = config.native or loaded.takes_whole
    if not is_native and config.tile != "auto":
        raise ConfigError(f"--tile {config.tile}: only pictures that keep their own sizes are cut\nhint: --native")
    loaded = loaded.with_tile(config.tile if is_native else "off")
    out = config.out or _OUTPUTS / loaded.located.label
    images = choose_images(loaded.located, config.data, config.split, listen, [out, _OUTPUTS])
    _require_distinct_names(images)
    if distributed.is_main_process:
        prepare_output_folder(out, config.overwrite, listen)
        forbid_overwriting_inputs("--out", (out / f"{image.key}.png" for image in images), file_paths(images))
    with open_latent_store(config.latents, loaded.model.latent_shape(loaded.image_size), images, distributed) as store:
        distributed.barrier()
        require_same_images(images, config.data or f"{loaded.located.label}'s run", distributed)
        batches, max_workers, max_pixels = _split(images, config.batch_size, is_native, loaded)
        hint = f"a smaller --batch-size than {config.batch_size}, --workers 1, {MEMORY_HINT}"
        job = _Job(loaded, out, store, is_native, max_pixels, hint, device_lock(loaded.placement.device))
        workers = min(worker_count(config.workers), max_workers)
        results = map_shared(job.run, batches, "reconstructing", workers, distributed, listen)
        unreadable = {name: reason for reasons, *_ in results for name, reason in reasons.items()}
        counts = ConversionCounts()
        for _, counted, _ in results:
            counts.update(counted)
        if any(is_tiled for *_, is_tiled in results) and loaded.receptive_field.is_whole:
            listen(Notice(f"{loaded.name} has a norm over the whole picture: tiles may differ in tone (--tile off)"))
        source = source_of(loaded.located, config.data, config.split)
        for text in counts.notices(source, loaded.background):
            listen(Notice(text))
        if store is not None and distributed.is_main_process:
            readable = [image for image in images if image.name not in unreadable]
            document = {"schema": SCHEMA, "model": loaded.name, "image_size": loaded.image_size, "fit": loaded.fit,
                        "latent_scaling": loaded.latent_scaling.to_json()}  # fmt: skip
            store.write(readable, document, listen)
        distributed.barrier()
    return ReconstructResult(out, len(images) - len(unreadable), unreadable, loaded.image_size, loaded.fit,
                             config.latents, {source: counts.to_json()})  # fmt: skip


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

    def run(self, batch: Sequence[ImageRef]) -> tuple[dict[str, str], ConversionCounts, bool]:
        """Write the reconstructions, and latents, of a batch.

        Returns:
            Unreadable images (name → reason), what was done to the others, and whether one of them was cut into tiles.
        """
        readable, unreadable, counts = self._decode(batch)
        is_tiled = any(self.loaded.tile_side(*pixels.shape[1:]) for _, pixels in readable)
        for keys, images in _equal_sized(readable, self.max_pixels):
            with self.lock:
                reconstructions = self.loaded.reconstruct(images, self.hint)
                if self.store is not None:
                    self.store.add(keys, *self._scaled_latents(images))
            for key, pixels in zip(keys, reconstructions, strict=True):
                write_bytes(self.out / f"{key}.png", encode_png(pixels))
        return unreadable, counts, is_tiled

    def _scaled_latents(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return latents and log variances of images as `LoadedModel.latents` does, scaled as the model's are."""
        latents, log_variances = self.loaded.latents(self.loaded.batch(images), self.hint)
        scaling = self.loaded.latent_scaling
        if scaling.is_identity:
            return latents, log_variances
        return scaling.apply(latents), None if log_variances is None else scaling.apply_to_log_variance(log_variances)

    def _decode(
        self, batch: Sequence[ImageRef]
    ) -> tuple[list[tuple[str, np.ndarray]], dict[str, str], ConversionCounts]:
        """Return (key, uint8 (3, H, W)) of the readable images, and the first two that `run` returns."""
        readable, unreadable, counts = [], {}, ConversionCounts()
        background = parse_colour(self.loaded.background)
        for image in batch:
            try:
                decoded = decode(image, background) if self.native else self.loaded.read_image(image)
                counts.add(image.name, decoded)
                readable.append((image.key, decoded.pixels.transpose(2, 0, 1)))
            except DecodeError as error:
                unreadable[image.name] = error.reason
        return readable, unreadable, counts


def _split(
    images: Sequence[ImageRef], batch_size: int, is_native: bool, loaded: LoadedModel
) -> tuple[list[Sequence[ImageRef]], int, int | None]:
    """Return the batches, the maximum of workers, and the maximum of pixels that a worker computes together, or None.

    None of them depends on the number of workers, nor does therefore rounding.
    """
    size, max_workers, max_pixels = batch_size, len(images), None
    if loaded.placement.device.type == "cpu":
        size = min(size, _NATIVE_BATCH) if is_native else loaded.device_batch_size(size)
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
