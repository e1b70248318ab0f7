"""Decode once: a packed uint8 array that later epochs and later runs read.

A pack is a folder `<key>/` of the cache with `images.u8`, the raw bytes of a (N, S, S, 3) array (the layout in which
images are decoded, and in which models that are quick take them), and `index.json`, which says what they are. It
appears whole or not at all: built beside under another name, flushed, renamed.
"""

import json
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import platformdirs

from aecli.data.decoding.decode import DecodeError, Pixels, decode_fitted
from aecli.data.image_ref import ImageRef, content_key
from aecli.data.packs import cache_folder as caches
from aecli.data.packs.on_the_fly import Images, OnTheFly, require_few_broken
from aecli.errors import DataError, OutputError
from aecli.progress import Notice, Progress
from aecli.runtime.threads import ordered_map, worker_count
from aecli.storage.atomic_files import fsync_folder, fsync_path
from aecli.storage.locks import Lock

_REPORT_SECONDS = 0.05
_WAIT_SECONDS = 0.2
_MOST_BYTES_AHEAD = 2**26  # decoded and waiting to be written, for each worker

Reports = Generator[Progress | Notice, None, "Pack"]


@dataclass(frozen=True)
class Pack:
    """Decoded images: `images` is uint8 (N, 3, S, S), read-only, in the order of `names`; or OnTheFly in its place.

    `skipped` says of each image that couldn't be decoded (name -> reason) why it is not there; on the fly, it grows.
    """

    names: list[str]
    images: Images
    skipped: dict[str, str]


def pack_images(images: Sequence[ImageRef], size: int, how: str, cache: str, workers: int | None = None) -> Reports:
    """Decode `images` to size x size pixels, or find them decoded; yields progress and notices, returns the Pack.

    `how` is `squash` or `crop` (see `decode.fit`). `cache` is `auto` (the user's cache folder), `off` (nothing is
    written: the array is held in memory) or a folder. A pack that is found reads no image and reports no progress;
    one that another process is building is waited for. A set that fits neither the cache's budget nor the disk (for
    `off`: that is more than half of the memory to be had) is decoded on the fly, and a notice says so.

    Raises:
        DataError: more than 1 % of the images can't be decoded.
        ConfigError: `AECLI_CACHE_GB` is no number.
        OutputError: the cache can't be written.

    """
    needed = len(images) * 3 * size * size
    if cache == "off" or not images:
        if needed > (memory := _available_memory()) / 2:
            return (yield from _on_the_fly(images, size, how, workers, f"half of the {memory / 1e9:.1f} GB of memory"))
        return (yield from _pack_in_memory(images, size, how, workers))
    root = Path(platformdirs.user_cache_dir("aecli"), "packs") if cache == "auto" else Path(cache)
    folder = root / pack_key(images, size, how)
    budget = caches.budget_bytes()
    try:
        found = _read_pack(folder, images, size)
        if found is not None:
            return found
        if needed > budget:
            limit = f"the {budget / 1e9:g} GB that {caches.BUDGET_VARIABLE} lets the image cache take"
            return (yield from _on_the_fly(images, size, how, workers, limit))
        root.mkdir(parents=True, exist_ok=True)
        with closing(caches.lock_of(folder)) as lock:
            yield from _wait(lock, folder, size, len(images))
            found = _read_pack(folder, images, size)
            if found is not None:
                return found
            caches.remove_leftovers(folder, lock)
            if not caches.make_room(root, needed, budget, folder.name):
                limit = f"the {caches.free_bytes(root) / 1e9:.1f} GB free for the image cache {root}"
                return (yield from _on_the_fly(images, size, how, workers, limit))
            with caches.building_folder(folder) as building:
                yield from _build(building, images, size, how, workers)
                return _install(building, folder, images, size)
    except OSError as error:
        raise OutputError(
            f"The image cache {root} can't be written ({error.strerror or error}). "
            "Name another folder with --cache DIR, or keep the images in memory with --cache off."
        ) from error


def pack_key(images: Sequence[ImageRef], size: int, how: str) -> str:
    """The name of a pack: 64 hex digits that change with whatever changes its pixels."""
    return content_key(images, caches.PACK_VERSION, PIL.__version__, size, how)


def _on_the_fly(images: Sequence[ImageRef], size: int, how: str, workers: int | None, limit: str) -> Reports:
    gigabytes = len(images) * 3 * size * size / 1e9
    yield Notice(f"{gigabytes:.3g} GB of decoded images are more than {limit}: they are decoded again in every epoch")
    rows = OnTheFly(images, size, how, workers)
    return Pack([image.name for image in images], rows, rows.skipped)


# Decoding


def _decode_fitted(image: ImageRef, size: int, how: str) -> Pixels | str:
    """(S, S, 3), contiguous; or the reason why there is none."""
    try:
        return decode_fitted(image, size, how)
    except DecodeError as error:
        return error.reason


def _decode_all(
    images: Sequence[ImageRef], size: int, how: str, workers: int | None, keep: Callable[[Pixels], object]
) -> Generator[Progress, None, dict[str, str]]:
    """Give each decoded image (S, S, 3) to `keep`, in order; returns those skipped, with their reasons."""
    skipped: dict[str, str] = {}
    reported = 0.0
    # Images differ in the time that they take: with fewer ahead, threads wait for the slowest one.
    ahead = worker_count(workers) * min(8, max(2, _MOST_BYTES_AHEAD // (3 * size * size)))
    with closing(ordered_map(partial(_decode_fitted, size=size, how=how), images, workers, ahead)) as results:
        for done, (image, result) in enumerate(zip(images, results, strict=True), start=1):
            if isinstance(result, str):
                skipped[image.name] = result
            else:
                keep(result)
            if time.monotonic() - reported >= _REPORT_SECONDS or done == len(images):
                reported = time.monotonic()
                yield Progress("decoding", done, len(images))
    require_few_broken(skipped, len(images))
    return skipped


def _names(images: Sequence[ImageRef], skipped: dict[str, str]) -> list[str]:
    return [image.name for image in images if image.name not in skipped]


def _pack_in_memory(images: Sequence[ImageRef], size: int, how: str, workers: int | None) -> Reports:
    try:
        array = np.empty((len(images), size, size, 3), dtype=np.uint8)
    except MemoryError as error:
        gigabytes = len(images) * 3 * size * size / 1e9
        raise DataError(f"--cache off: {gigabytes:.1f} GB of images don't fit into memory. Use --cache DIR.") from error
    places = iter(array)

    def keep(pixels: Pixels) -> None:
        next(places)[:] = pixels

    skipped = yield from _decode_all(images, size, how, workers, keep)
    names = _names(images, skipped)
    array.flags.writeable = False
    return Pack(names, array[: len(names)].transpose(0, 3, 1, 2), skipped)


def _available_memory() -> float:
    """Bytes that this process may still take without pushing others out; infinite where the system doesn't say."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        available = float(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux
        return float("inf")
    try:  # a container's own limit
        limit, used = (float(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        return min(available, limit - used)
    except (OSError, ValueError):  # none, or "max"
        return available


# On disk


def _read_pack(folder: Path, images: Sequence[ImageRef], size: int) -> Pack | None:
    """The pack in `folder`, marked as used, or None where there is none that is whole and holds these images."""
    try:
        index: dict[str, Any] = json.loads((folder / caches.INDEX).read_text(encoding="utf-8"))
        skipped = dict(index["skipped"])
        names = _names(images, skipped)
        whole = (folder / caches.PIXELS).stat().st_size == len(names) * 3 * size * size
        if not whole or len(names) != index["images"] or not names:
            return None
        array = np.memmap(folder / caches.PIXELS, dtype=np.uint8, mode="r", shape=(len(names), size, size, 3))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    caches.mark_used(folder)
    return Pack(names, array.transpose(0, 3, 1, 2), skipped)


def _wait(lock: Lock, folder: Path, size: int, total: int) -> Generator[Progress | Notice, None, None]:
    """Take `lock`; while another process builds the pack in `folder`, report how far it is."""
    if lock.take():
        return
    yield Notice("another process is decoding these images: waiting for it")
    while not lock.take():
        yield Progress("decoding", caches.bytes_built(folder) // (3 * size * size), total)
        time.sleep(_WAIT_SECONDS)


def _build(
    building: Path, images: Sequence[ImageRef], size: int, how: str, workers: int | None
) -> Generator[Progress, None, None]:
    with open(building / caches.PIXELS, "wb") as file:
        skipped = yield from _decode_all(images, size, how, workers, lambda pixels: file.write(pixels.data))
    fsync_path(building / caches.PIXELS)
    index = describe(size, how, len(images) - len(skipped), skipped)
    (building / caches.INDEX).write_text(json.dumps(index), encoding="utf-8")
    fsync_path(building / caches.INDEX)


def describe(size: int, how: str, images: int, skipped: dict[str, str]) -> dict[str, Any]:
    """What a pack's `index.json` holds; the names of its `images` are those asked for, but for the `skipped`."""
    return {"schema": caches.PACK_VERSION, "size": size, "fit": how, "images": images, "skipped": skipped}


def _install(building: Path, folder: Path, images: Sequence[ImageRef], size: int) -> Pack:
    """Rename what was built to `folder`, unless another process was first; replaces a damaged pack."""
    failure = OSError(f"{folder} did not keep what was written")
    for _ in range(2):
        try:
            building.rename(folder)
        except OSError as error:
            failure = error
            theirs = _read_pack(folder, images, size)
            if theirs is not None:
                return theirs
            caches.drop(folder)
        else:
            fsync_folder(folder.parent)
            break
    pack = _read_pack(folder, images, size)
    if pack is None:
        raise failure
    return pack
