"""Decode once: a packed uint8 array that later epochs and later runs read.

A pack is a folder `<key>/` of the cache with `images.u8`, the raw bytes of a (N, S, S, 3) array (channels last, as
images are decoded and as the faster models take them), and `index.json`, which describes it. Of whole pictures the
arrays (H, W, 3) follow one another, and the index has their `shapes` [H, W]. It is built under another name in the same
folder, flushed to the disk, and renamed atomically.
"""

import json
import math
import re
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import platformdirs

from aecli.configs.checks import RANDOM_CROP
from aecli.data.decoding.colour import Colour
from aecli.data.decoding.conversions import ConversionCounts, Decoded
from aecli.data.decoding.decode import (
    WHITE,
    DecodeError,
    Pixels,
    decode_fitted,
    image_size,
    whole_limit,
    whole_size,
)
from aecli.data.image_ref import ImageRef, content_key
from aecli.data.packs import cache_folder as caches
from aecli.data.packs.on_the_fly import OnTheFly, require_few_broken
from aecli.data.packs.whole import Images, WholeImages
from aecli.errors import DataError, OutputError
from aecli.progress import Notice, Progress
from aecli.runtime.threads import ordered_map, worker_count
from aecli.storage.atomic_files import fsync_folder, fsync_path
from aecli.storage.locks import Lock
from aecli.storage.strict_json import is_count

_REPORT_SECONDS = 0.05
_WAIT_SECONDS = 0.2
_MEASURED_REPORT = 100  # images measured between two reports
_MAX_BYTES_AHEAD = 2**26  # decoded and waiting to be written, for each worker

Reports = Generator[Progress | Notice, None, "Pack"]


@dataclass(frozen=True)
class Pack:
    """Decoded images: `images` is uint8 (N, 3, S, S), read-only, in the order of `names`; or OnTheFly instead.

    `skipped` (name -> reason) holds the images that can't be decoded, and `conversions` counts what decoding did to the
    others; with OnTheFly both grow as images are met. Of whole pictures, so many are `reduced` because they are very
    large, and so many are `small`, below the size of the pieces that are taken of them.
    """

    names: list[str]
    images: Images
    skipped: dict[str, str]
    conversions: ConversionCounts
    reduced: int = 0
    small: int = 0


@dataclass(frozen=True)
class _Request:
    """Images, and what they are decoded to."""

    images: Sequence[ImageRef]
    size: int
    how: str
    workers: int | None
    background: Colour
    skip_broken: bool

    @property
    def is_whole(self) -> bool:
        """Whether pictures keep their own sizes."""
        return self.how == RANDOM_CROP

    @property
    def image_bytes(self) -> int:
        """Bytes of a decoded image; about so many at most, where they differ in size."""
        return 3 * (whole_limit(self.size) if self.is_whole else self.size) ** 2


@dataclass(frozen=True)
class _Measured:
    """Bytes of the decoded images; how many are reduced, and how many are smaller than the pieces taken of them."""

    nbytes: int
    reduced: int = 0
    small: int = 0


def pack_images(
    images: Sequence[ImageRef],
    size: int,
    how: str,
    cache: str,
    workers: int | None = None,
    background: Colour = WHITE,
    skip_broken: bool = False,
) -> Reports:
    """Decode `images` to size x size pixels, or read a cached pack; yields progress and notices, returns the Pack.

    `how` is `squash` or `crop` (see `decode.fit`), or `random-crop` for WholeImages, of which pieces of `size` are to
    be taken; very large ones are reduced (see `decode.whole_size`). `cache` is `auto` (the user's cache folder), `off`
    (nothing is written: the array is held in memory) or a folder. A cached pack reads no image and reports no
    progress; one that another process is building is waited for. A set that exceeds the cache's budget or the free disk
    space (for `off`: half of the available memory) is decoded on the fly, and a notice says so.

    Raises:
        DataError: more than 1 % of the images can't be decoded, unless `skip_broken`; or none can.
        ConfigError: `AECLI_CACHE_GB` is not a number.
        OutputError: the cache can't be written.
    """
    request = _Request(images, size, how, workers, background, skip_broken)
    if cache == "off" or not images:
        measured = yield from _measure(request)
        if measured.nbytes > (memory := _available_memory()) / 2:
            return (yield from _on_the_fly(request, measured, f"half of the {memory / 1e9:.1f} GB of memory"))
        return (yield from _pack_in_memory(request, measured))
    root = Path(platformdirs.user_cache_dir("aecli"), "packs") if cache == "auto" else Path(cache)
    folder = root / pack_key(images, size, how, background)
    budget = caches.budget_bytes()
    try:
        if pack := _read_pack(folder, request):
            return pack
        measured = yield from _measure(request)
        if measured.nbytes > budget:
            limit = f"the {budget / 1e9:g} GB that {caches.BUDGET_VARIABLE} allows the image cache"
            return (yield from _on_the_fly(request, measured, limit))
        root.mkdir(parents=True, exist_ok=True)
        with closing(caches.lock_of(folder)) as lock:
            yield from _wait(lock, folder, measured.nbytes, len(images))
            if pack := _read_pack(folder, request):
                return pack
            caches.remove_leftovers(folder, lock)
            if not caches.make_room(root, measured.nbytes, budget, folder.name):
                limit = f"the {caches.free_bytes(root) / 1e9:.1f} GB free for the image cache {root}"
                return (yield from _on_the_fly(request, measured, limit))
            with caches.building_folder(folder) as building:
                yield from _build(building, request, measured)
                return _install(building, folder, request)
    except OSError as error:
        raise OutputError(
            f"the image cache {root} can't be written: {error.strerror or error}\n"
            "hint: --cache DIR names another folder, --cache off keeps the images in memory"
        ) from error


def pack_key(images: Sequence[ImageRef], size: int, how: str, background: Colour = WHITE) -> str:
    """The name of a pack: 64 hex digits that change with anything that changes its pixels."""
    kept = whole_limit(size) if how == RANDOM_CROP else size  # whole pictures are the same for many sizes of pieces
    return content_key(images, caches.PACK_VERSION, PIL.__version__, kept, how, background)


def _measure(request: _Request) -> Generator[Progress, None, _Measured]:
    """Measure the images; of whole pictures that reads their headers."""
    images, size = request.images, request.size
    if not request.is_whole:
        return _Measured(len(images) * request.image_bytes)

    def sides(image: ImageRef) -> tuple[int, int]:
        try:
            return image_size(image)
        except DecodeError:  # told when it is decoded
            return (0, 0)

    nbytes = reduced = small = 0
    with closing(ordered_map(sides, images, request.workers)) as found:
        for done, (height, width) in enumerate(found, start=1):
            if done % _MEASURED_REPORT == 0 or done == len(images):
                yield Progress("reading sizes", done, len(images))
            if height:
                kept = whole_size(height, width, size)
                nbytes += 3 * math.prod(kept)
                reduced += kept != (height, width)
                small += min(kept) < size
    return _Measured(nbytes, reduced, small)


def _on_the_fly(request: _Request, measured: _Measured, limit: str) -> Reports:
    yield Notice(f"{measured.nbytes / 1e9:.3g} GB of decoded images are more than {limit}: they are decoded again in "
                 "every epoch")  # fmt: skip
    rows = OnTheFly(request.images, request.size, request.how, request.workers, request.background, request.skip_broken)
    return Pack([image.name for image in request.images], rows, rows.skipped, rows.conversions, measured.reduced,
                measured.small)  # fmt: skip


# Decoding


def _decode_all(
    request: _Request, keep: Callable[[Pixels], object]
) -> Generator[Progress, None, tuple[dict[str, str], ConversionCounts]]:
    """Call `keep` with each decoded image (S, S, 3), in order; returns the skipped ones (name -> reason)."""

    def decoded(image: ImageRef) -> Decoded | str:
        try:
            return decode_fitted(image, request.size, request.how, request.background)
        except DecodeError as error:
            return error.reason

    images, workers = request.images, request.workers
    skipped: dict[str, str] = {}
    conversions = ConversionCounts()
    reported = 0.0
    # Decoding times differ: with fewer images ahead, threads wait for the slowest one.
    ahead = worker_count(workers) * min(8, max(2, _MAX_BYTES_AHEAD // request.image_bytes))
    with closing(ordered_map(decoded, images, workers, ahead)) as results:
        for done, (image, result) in enumerate(zip(images, results, strict=True), start=1):
            if isinstance(result, str):
                skipped[image.name] = result
            else:
                conversions.add(image.name, result)
                keep(result.pixels)
            if time.monotonic() - reported >= _REPORT_SECONDS or done == len(images):
                reported = time.monotonic()
                yield Progress("decoding", done, len(images))
    require_few_broken(skipped, len(images), request.skip_broken)
    return skipped, conversions


def _names(images: Sequence[ImageRef], skipped: dict[str, str]) -> list[str]:
    return [image.name for image in images if image.name not in skipped]


def _pack_in_memory(request: _Request, measured: _Measured) -> Reports:
    if request.is_whole:
        pictures: list[Pixels] = []
        skipped, conversions = yield from _decode_all(request, pictures.append)
        names = _names(request.images, skipped)
        return Pack(names, _whole(pictures), skipped, conversions, measured.reduced, measured.small)
    try:
        array = np.empty((len(request.images), request.size, request.size, 3), dtype=np.uint8)
    except MemoryError as error:
        raise DataError(
            f"--cache off: {measured.nbytes / 1e9:.1f} GB of images don't fit into memory\n"
            "hint: use --cache auto or --cache DIR"
        ) from error
    rows = iter(array)

    def keep(pixels: Pixels) -> None:
        next(rows)[:] = pixels

    skipped, conversions = yield from _decode_all(request, keep)
    names = _names(request.images, skipped)
    array.flags.writeable = False
    return Pack(names, array[: len(names)].transpose(0, 3, 1, 2), skipped, conversions)


def _whole(pictures: Iterable[Pixels]) -> WholeImages:
    """Return pictures (H, W, 3) as rows are, (3, H, W), read-only."""
    rows = [picture.transpose(2, 0, 1) for picture in pictures]
    for row in rows:
        row.flags.writeable = False
    return WholeImages(rows)


def _available_memory() -> float:
    """Bytes of memory that this process can still use without swapping; infinite where the system doesn't say."""
    try:
        meminfo = Path("/proc/meminfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return math.inf
    match = re.search(r"MemAvailable:\s+(\d+) kB", meminfo)
    available = float(match[1]) * 1024 if match else math.inf
    try:  # a container's own limit
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text(encoding="utf-8") for name in ("max", "current"))
    except OSError:  # no control group
        return available
    return available if limit.strip() == "max" else min(available, float(limit) - float(used))


# On disk


def _read_pack(folder: Path, request: _Request) -> Pack | None:
    """The pack in `folder`, marked as used; None where there is none, or it is incomplete or of other images."""
    index = caches.read_index(folder)
    if index is None or not isinstance(index.get("skipped"), dict):
        return None
    skipped = index["skipped"]
    names = _names(request.images, skipped)
    shapes = _shapes(index, request, len(names))
    if not names or index.get("images") != len(names) or shapes is None:
        return None
    ends = np.cumsum([3 * math.prod(shape) for shape in shapes] if request.is_whole else [])
    expected = int(ends[-1]) if request.is_whole else len(names) * request.image_bytes
    if caches.pixel_bytes(folder) != expected:
        return None
    try:
        flat = np.memmap(folder / caches.PIXELS, dtype=np.uint8, mode="r", shape=(expected,))
    except OSError:  # dropped at this moment
        return None
    caches.mark_used(folder)
    conversions = ConversionCounts.from_json(index.get("conversions"), len(names))
    if not request.is_whole:
        array = flat.reshape(len(names), request.size, request.size, 3)
        return Pack(names, array.transpose(0, 3, 1, 2), skipped, conversions)
    parts = np.split(np.asarray(flat), ends[:-1])  # plain arrays: a np.memmap costs more to index
    whole = _whole(part.reshape(*shape, 3) for part, shape in zip(parts, shapes, strict=True))
    reduced, small = index.get("reduced"), sum(min(shape) < request.size for shape in shapes)
    return Pack(names, whole, skipped, conversions, reduced if is_count(reduced) else 0, small)


def _shapes(index: Mapping[str, Any], request: _Request, count: int) -> list[list[int]] | None:
    """The [H, W] of each of `count` whole pictures, none for others; None where they are missing or damaged."""
    if not request.is_whole:
        return []
    shapes = index.get("shapes")
    is_valid = isinstance(shapes, list) and len(shapes) == count and all(
        isinstance(shape, list) and len(shape) == 2 and all(is_count(side) and side > 0 for side in shape)
        for shape in shapes
    )  # fmt: skip
    return shapes if is_valid else None


def _wait(lock: Lock, folder: Path, needed: int, total: int) -> Generator[Progress | Notice, None, None]:
    """Acquire `lock`; while another process builds the pack in `folder`, report its progress."""
    if lock.take():
        return
    yield Notice("another process is decoding these images: waiting for it")
    while not lock.take():
        yield Progress("decoding", caches.bytes_built(folder) * total // max(1, needed), total)
        time.sleep(_WAIT_SECONDS)


def _build(building: Path, request: _Request, measured: _Measured) -> Generator[Progress, None, None]:
    shapes: list[tuple[int, ...]] = []
    with open(building / caches.PIXELS, "wb") as file:

        def keep(pixels: Pixels) -> None:
            file.write(pixels.data)
            if request.is_whole:
                shapes.append(pixels.shape[:2])

        skipped, conversions = yield from _decode_all(request, keep)
    fsync_path(building / caches.PIXELS)
    index = describe(request.size, request.how, len(request.images) - len(skipped), skipped)
    index["conversions"] = conversions.to_json()
    if request.is_whole:
        index |= {"shapes": shapes, "reduced": measured.reduced}
    (building / caches.INDEX).write_text(json.dumps(index), encoding="utf-8")
    fsync_path(building / caches.INDEX)


def describe(size: int, how: str, images: int, skipped: dict[str, str]) -> dict[str, Any]:
    """The content of `index.json` of a pack of that many `images`: those asked for but the `skipped`."""
    return {"schema": caches.PACK_VERSION, "size": size, "fit": how, "images": images, "skipped": skipped}


def _install(building: Path, folder: Path, request: _Request) -> Pack:
    """Rename `building` to `folder`, unless another process was first; replaces a damaged pack."""
    try:
        building.rename(folder)
    except OSError:
        if pack := _read_pack(folder, request):
            return pack
        caches.drop(folder)
        building.rename(folder)
    fsync_folder(folder.parent)
    if pack := _read_pack(folder, request):
        return pack
    raise OSError(f"{folder} does not hold what was written")
