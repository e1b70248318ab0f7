"""Reconstructions of images as PNG files, and their latents."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from aecli.configs import ReconstructConfig
from aecli.data.decoding.colour import parse_colour
from aecli.data.decoding.conversions import ConversionCounts
from aecli.data.decoding.decode import decode
from aecli.data.image_ref import file_paths, require_same_images
from aecli.data.sources.registry import ImageRef
from aecli.errors import ConfigError
from aecli.figures.png import encode_png
from aecli.inference.image_batches import (
    ReadImages,
    batch_limits,
    equal_sized,
    most_workers,
    read_images,
    require_distinct_keys,
    require_distinct_names,
)
from aecli.inference.latents.row_store import RowStore, RowType, open_row_store
from aecli.inference.loaded_model import MEMORY_HINT, LoadedModel, load_model
from aecli.progress import Listener, Notice, ignore
from aecli.runs.images import choose_images, source_of
from aecli.runtime.distributed import Distributed
from aecli.runtime.threads import device_lock, worker_count
from aecli.runtime.work_queue import map_shared
from aecli.storage.atomic_files import write_bytes
from aecli.storage.outputs import (
    check_writable_file,
    forbid_overwriting_inputs,
    notify_if_replaced,
    prepare_output_folder,
)
from aecli.storage.strict_json import SCHEMA

_OUTPUTS = Path("reconstructions")
_MEAN, _LOG_VARIANCE = "mean", "log_variance"  # the tensors of the file of latents


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
                        config.fit, config.background)  # fmt: skip
    if config.latents is not None:
        loaded = loaded.of_one_size("--latents needs", listen)
        loaded.tell_scaling(listen)
    is_native = config.native or loaded.takes_whole
    if not is_native and config.tile != "auto":
        raise ConfigError(f"--tile {config.tile}: only pictures that keep their own sizes are cut\nhint: --native")
    loaded = loaded.with_tile(config.tile if is_native else "off")
    out = config.out or _OUTPUTS / loaded.located.label
    images = choose_images(loaded.located, config.data, config.split, listen, [out, _OUTPUTS])
    require_distinct_names(images)
    require_distinct_keys([image.key for image in images])
    if distributed.is_main_process:
        prepare_output_folder(out, config.overwrite, listen)
        forbid_overwriting_inputs("--out", (out / f"{image.key}.png" for image in images), file_paths(images))
        if config.latents is not None:
            check_writable_file(config.latents, "--latents")
            forbid_overwriting_inputs("--latents", [config.latents], file_paths(images))
    with ExitStack() as stack:
        store = None
        if config.latents is not None:
            names = [image.name for image in images]
            store = stack.enter_context(open_row_store(config.latents, names, distributed))
        distributed.barrier()
        require_same_images(images, config.data or f"{loaded.located.label}'s run", distributed)
        size, max_pixels = batch_limits(loaded, config.batch_size, is_native)
        batches = [images[start : start + size] for start in range(0, len(images), size)]
        hint = f"a smaller --batch-size than {config.batch_size}, --workers 1, {MEMORY_HINT}"
        job = _Job(loaded, out, store, is_native, max_pixels, hint, device_lock(loaded.placement.device.type))
        workers = most_workers(loaded, worker_count(config.workers))
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
            readable = [image.name for image in images if image.name not in unreadable]
            row = RowType("float32", loaded.model.latent_shape(loaded.image_size))
            document = {"schema": SCHEMA, "model": loaded.name, "image_size": loaded.image_size, "fit": loaded.fit,
                        "latent_scaling": loaded.latent_scaling.to_json()}  # fmt: skip
            notify_if_replaced(store.path, listen)
            store.write(readable, {_MEAN: row, _LOG_VARIANCE: row}, document)
        distributed.barrier()
    return ReconstructResult(out, len(images) - len(unreadable), unreadable, loaded.image_size, loaded.fit,
                             config.latents, {source: counts.to_json()})  # fmt: skip


@dataclass(frozen=True)
class _Job:
    """The work on a batch, from file to file; workers wait for each other only to use an accelerator."""

    loaded: LoadedModel
    out: Path
    store: RowStore | None
    native: bool
    max_pixels: int | None
    hint: str
    lock: AbstractContextManager[Any]

    def run(self, batch: Sequence[ImageRef]) -> tuple[dict[str, str], ConversionCounts, bool]:
        """Write the reconstructions, and latents, of a batch.

        Returns:
            Unreadable images (name → reason), what was done to the others, and whether one of them was cut into tiles.
        """
        found = self._read(batch)
        is_tiled = any(self.loaded.tile_side(*pixels.shape[1:]) for _, pixels in found.readable)
        for images, pixels in equal_sized(found.readable, self.max_pixels):
            with self.lock:
                reconstructions = self.loaded.reconstruct(pixels, self.hint)
                if self.store is not None:
                    self.store.add([image.name for image in images], self._scaled_latents(pixels))
            for image, reconstruction in zip(images, reconstructions, strict=True):
                write_bytes(self.out / f"{image.key}.png", encode_png(reconstruction))
        return found.unreadable, found.counts, is_tiled

    def _scaled_latents(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return latents float32 (N, …) of images, and log variances if there are any, scaled as the model's are."""
        latents, log_variances = self.loaded.latents(self.loaded.batch(images), self.hint)
        scaling = self.loaded.latent_scaling
        found = {_MEAN: scaling.apply(latents)}
        if log_variances is not None:
            found[_LOG_VARIANCE] = scaling.apply_to_log_variance(log_variances)
        return found

    def _read(self, batch: Sequence[ImageRef]) -> ReadImages:
        if not self.native:
            return read_images(batch, self.loaded.read_image)
        background = parse_colour(self.loaded.background)
        return read_images(batch, lambda image: decode(image, background))
