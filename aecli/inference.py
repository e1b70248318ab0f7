"""Trained models at work: which images, and their reconstructions."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from aecli import loaded as at_work
from aecli.configs import ReconstructConfig
from aecli.data.decode import DecodeError, decode, decode_fitted, worker_count
from aecli.data.shards import is_stream
from aecli.data.sources import ImageRef, list_images, split_indices
from aecli.dealing import deal, require_same_images
from aecli.errors import ConfigError, DataError
from aecli.files import write_bytes
from aecli.latents import LatentStore, latents_under_way
from aecli.loaded import LESS_MEMORY, LoadedModel, load_model
from aecli.outputs import claim_output_folder, require_not_read
from aecli.progress import Listener, ignore
from aecli.runs import Located, RunFolder
from aecli.runtime.distributed import World
from aecli.runtime.threads import taking_turns
from aecli.untrusted import SCHEMA
from aecli.words import plain

_PNG_LEVEL = 3
# All together the workers of a CPU reconstruct no more pixels at once: a fixed share, as what a worker takes is.
_CPU_PIXELS = 2**21
_NATIVE_BATCH = 8  # images whose sizes are not known before they are decoded


def run_images(run: RunFolder, split: str) -> list[ImageRef]:
    """List the images that a run trained on, validated on, or both (`train`, `val`, `all`).

    Raises:
        CheckpointError: the run's config.json is damaged.
        DataError: the images are gone.
    """
    options = run.read_config()["options"]
    data, val_data = options["data"], options["val_data"]
    if val_data is None and is_stream(data) and split == "val":
        raise DataError(f"{run.path} was trained on a stream and held nothing out; name some images with --data")
    if val_data is None:
        listed = list_images(data)
        return listed if is_stream(data) else select_split(listed, split, options["val_fraction"])
    trained_on = list_images(data) if split != "val" else []
    return trained_on + (list_images(val_data) if split != "train" else [])


def select_split(images: Sequence[ImageRef], split: str, val_fraction: float) -> list[ImageRef]:
    """Return the images of `split` by the rule that training splits by."""
    if split == "all":
        return list(images)
    train, val = split_indices(images, val_fraction)
    return [images[index] for index in (train if split == "train" else val)]


def choose_images(located: Located, data: str | None, split: str | None) -> list[ImageRef]:
    """List the images of `data`, or of the run where it is None: its validation images unless `split` says otherwise.

    Raises:
        ConfigError: no data was given, and there is no run to take them from.
        DataError: the images can't be had, or none is in that split.
    """
    if data is None and located.run is None:
        raise ConfigError(f"--data: {located.checkpoint} lies in no run folder, so name the images")
    if data is None:
        assert located.run is not None
        images = run_images(located.run, split or "val")
        if not images:
            raise DataError(f"{located.run.path} has no {split or 'validation'} images; name some with --data")
        return images
    options = located.run.read_config()["options"] if located.run else {"val_fraction": None, "val_data": None}
    fraction = options["val_fraction"]
    if split in ("train", "val") and options["val_data"] is not None:
        raise ConfigError(f"--split {split}: the run validated on {options['val_data']}, so it parted no other images")
    if split in ("train", "val") and fraction is None:
        raise ConfigError(
            f"--split {split}: {located.checkpoint} lies in no run folder, so how it was split isn't known"
        )
    images = select_split(list_images(data), split or "all", fraction or 0.0)
    if not images:
        raise DataError(f"{data}: no image is in the split {split!r}")
    return images


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
    with World() as world:
        return _reconstruct(config, world, listen if world.is_main else ignore)


def _reconstruct(config: ReconstructConfig, world: World, listen: Listener) -> ReconstructResult:
    loaded = load_model(config.model, config.runs, config.device, config.precision)
    images = choose_images(loaded.located, config.data, config.split)
    _require_distinct_names(images)
    out = config.out or Path("reconstructions") / loaded.located.label
    if world.is_main:
        claim_output_folder(out, config.overwrite, listen)
        require_not_read("--out", (out / f"{image.key}.png" for image in images), images)
    with latents_under_way(config.latents, loaded.model.latent_shape(loaded.image_size), images, world) as store:
        return _reconstruct_to(out, images, loaded, store, config, world, listen)


def _reconstruct_to(
    out: Path,
    images: list[ImageRef],
    loaded: LoadedModel,
    store: LatentStore | None,
    config: ReconstructConfig,
    world: World,
    listen: Listener,
) -> ReconstructResult:
    world.wait_for_all()
    require_same_images(images, config.data or f"{loaded.located.label}'s run", world)
    less_memory = f"a smaller --batch-size than {config.batch_size}, --workers 1, {LESS_MEMORY}"
    # Each worker takes a batch from file to file, and waits for no other but where they share one accelerator.
    batches, most_workers, at_once = _share_out(images, config, loaded)
    turn = taking_turns(loaded.placement.device)

    def work(batch: Sequence[ImageRef]) -> dict[str, str]:
        readable, broken = _read(batch, config.native, loaded)
        for keys, stack in _equal_sized(readable, at_once):
            with turn:
                reconstructions = loaded.reconstruct(stack, less_memory)
                if store is not None:
                    store.add(keys, *loaded.codes(loaded.batch(stack), less_memory))
            for key, pixels in zip(keys, reconstructions, strict=True):
                write_bytes(out / f"{key}.png", encode_png(pixels))
        return broken

    dealt = deal(work, batches, "reconstructing", min(worker_count(config.workers), most_workers), world, listen)
    told = sorted(chain.from_iterable(world.gather_json([(number, *each.items()) for number, each in dealt])))
    unreadable = {name: reason for _, *broken in told for name, reason in broken}
    if store is not None and world.is_main:
        kept = [image for image in images if image.name not in unreadable]
        document = {"schema": SCHEMA, "model": loaded.name, "image_size": loaded.image_size, "fit": loaded.fit}
        store.write(kept, document, listen)
    world.wait_for_all()
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
        raise DataError(f"{len(whole)} names, such as {plain(whole[0])}, are borne by a training and a validation "
                        "image each; reconstruct --split train and --split val apart")  # fmt: skip
    keys = [key for key, count in Counter(image.key for image in images).items() if count > 1]
    if keys:
        raise DataError(f"images that differ in nothing but the suffix ({plain(keys[0])}.*) would overwrite each "
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


def encode_png(pixels: np.ndarray) -> bytes:
    """Return uint8 (3, H, W) as a PNG file's bytes."""
    file = BytesIO()
    # A thirteenth larger than at Pillow's level 6, in less than half of the time.
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(file, "PNG", compress_level=_PNG_LEVEL)
    return file.getvalue()
