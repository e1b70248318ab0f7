"""Trained models at work: which images, and their reconstructions."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from aecli.configs import ReconstructConfig
from aecli.data.decoding.decode import DecodeError, decode, decode_fitted
from aecli.data.image_ref import file_paths, require_same_images
from aecli.data.sources.registry import ImageRef
from aecli.errors import DataError, single_line
from aecli.figures.png import encode_png
from aecli.inference import loaded_model as at_work
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

# All together the workers of a CPU reconstruct no more pixels at once: a fixed share, as what a worker takes is.
_CPU_PIXELS = 2**21
_NATIVE_BATCH = 8  # images whose sizes are not known before they are decoded


@dataclass(frozen=True)
class ReconstructResult:
    """Where the pictures are, how many were written, which inputs could not be read (name → reason), the latents."""

    out: Path
    written: int
    unreadable: dict[str, str]
    latents: Path | None = None


def reconstruct(config: ReconstructConfig, listen: Listener = ignore) -> ReconstructResult:
    """Write a PNG for every input image under its own relative path; unreadable ones are left out and named.

    In processes that torchrun started, all of them must call this: they share the images, and get the same result; the
    first one's `listen` hears of it.

    Raises:
        AecliError: one of its kinds, for a model, images or a folder that can't be used; in one of several processes
            also a PeerError, where another one failed.
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
        return _reconstruct_to(out, images, loaded, store, config, distributed, listen)


def _reconstruct_to(
    out: Path,
    images: list[ImageRef],
    loaded: LoadedModel,
    store: LatentStore | None,
    config: ReconstructConfig,
    distributed: Distributed,
    listen: Listener,
) -> ReconstructResult:
    distributed.barrier()
    require_same_images(images, config.data or f"{loaded.located.label}'s run", distributed)
    hint = f"a smaller --batch-size than {config.batch_size}, --workers 1, {MEMORY_HINT}"
    # Each worker takes a batch from file to file, and waits for no other but where they share one accelerator.
    batches, most_workers, at_once = _share_out(images, config, loaded)
    turn = device_lock(loaded.placement.device)

    def work(batch: Sequence[ImageRef]) -> dict[str, str]:
        readable, broken = _read(batch, config.native, loaded)
        for keys, stack in _equal_sized(readable, at_once):
            with turn:
                reconstructions = loaded.reconstruct(stack, hint)
                if store is not None:
                    store.add(keys, *loaded.latents(loaded.batch(stack), hint))
            for key, pixels in zip(keys, reconstructions, strict=True):
                write_bytes(out / f"{key}.png", encode_png(pixels))
        return broken

    dealt = map_shared(
        work, batches, "reconstructing", min(worker_count(config.workers), most_workers), distributed, listen
    )
    told = sorted(
        chain.from_iterable(distributed.all_gather_object([(number, *each.items()) for number, each in dealt]))
    )
    unreadable = {name: reason for _, *broken in told for name, reason in broken}
    if store is not None and distributed.is_main_process:
        kept = [image for image in images if image.name not in unreadable]
        document = {"schema": SCHEMA, "model": loaded.name, "image_size": loaded.image_size, "fit": loaded.fit}
        store.write(kept, document, listen)
    distributed.barrier()
    return ReconstructResult(out, len(images) - len(unreadable), unreadable, config.latents)


def _share_out(
    images: Sequence[ImageRef], config: ReconstructConfig, loaded: LoadedModel
) -> tuple[list[Sequence[ImageRef]], int, int | None]:
    """Return the batches, the most workers for them, and how many pixels one reconstructs at once (None: a batch).

    Which images are in a batch depends on `--batch-size` and on the device, but not on the workers.
    """
    size, most_workers, at_once = config.batch_size, len(images), None
    if loaded.placement.device.type == "cpu":
        size = min(size, _NATIVE_BATCH) if config.native else loaded.at_once(size)
        most_workers, at_once = _CPU_PIXELS // at_work.WORKER_PIXELS, at_work.WORKER_PIXELS
    batches = [images[start : start + size] for start in range(0, len(images), size)]
    return batches, most_workers, at_once


def _read(
    batch: Sequence[ImageRef], native: bool, loaded: LoadedModel
) -> tuple[list[tuple[str, np.ndarray]], dict[str, str]]:
    """Decode a batch: keys with uint8 (3, H, W), and the names of unreadable ones with their reasons."""
    readable, broken = [], {}
    for image in batch:
        try:
            pixels = decode(image) if native else decode_fitted(image, loaded.image_size, loaded.fit)
            readable.append((image.key, pixels.transpose(2, 0, 1)))
        except DecodeError as error:
            broken[image.name] = error.reason
    return readable, broken


def _require_distinct_names(images: Sequence[ImageRef]) -> None:
    """Refuse images whose reconstructions would overwrite each other."""
    whole = [name for name, count in Counter(image.name for image in images).items() if count > 1]
    if whole:
        raise DataError(f"{len(whole)} names, such as {single_line(whole[0])}, are borne by a training and a "
                        "validation image each; reconstruct --split train and --split val apart")  # fmt: skip
    keys = [key for key, count in Counter(image.key for image in images).items() if count > 1]
    if keys:
        raise DataError(f"images that differ in nothing but the suffix ({single_line(keys[0])}.*) would overwrite each "
                        "other; rename one of each")  # fmt: skip


def _equal_sized(
    items: Sequence[tuple[str, np.ndarray]], most_pixels: int | None
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Stack images of one size, with at most so many pixels where that is said: keys, and uint8 (N, 3, H, W)."""
    sizes: dict[tuple[int, ...], list[tuple[str, np.ndarray]]] = {}
    for key, pixels in items:
        sizes.setdefault(pixels.shape, []).append((key, pixels))
    for (_, height, width), members in sizes.items():
        at_once = max(1, most_pixels // (height * width)) if most_pixels else len(members)
        for start in range(0, len(members), at_once):
            chosen = members[start : start + at_once]
            yield [key for key, _ in chosen], np.stack([pixels for _, pixels in chosen])
