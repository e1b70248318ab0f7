"""Decode once: a packed uint8 array that later epochs and later runs read.

A pack is a folder `<key>/` of the cache with `images.u8`, the raw bytes of a (N, 3, S, S) array, and `index.json`,
which says what they are. It appears whole or not at all: built beside under another name, flushed, renamed.
"""

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import platformdirs

from aecli.data.decode import DecodeError, Pixels, decode_fitted, ordered_map
from aecli.data.images import ImageRef
from aecli.errors import DataError, OutputError
from aecli.files import flush
from aecli.progress import Progress

PACK_VERSION = 1  # of the files' format and of what decoding makes of an image
BROKEN_LIMIT = 0.01  # share of the images
_REPORT_SECONDS = 0.05
_BUILDING = ".building-"
_LEFTOVER_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Pack:
    """Decoded images: `images` is uint8 (N, 3, S, S), read-only, in the order of `names`.

    `skipped` says of each image that couldn't be decoded (name -> reason) why it is not there.
    """

    names: list[str]
    images: Pixels
    skipped: dict[str, str]


def pack_images(
    images: Sequence[ImageRef], size: int, how: str, cache: str, workers: int | None = None
) -> Generator[Progress, None, Pack]:
    """Decode `images` to size x size pixels, or find them decoded; yields progress, returns the Pack.

    `how` is `squash` or `crop` (see `decode.fit`). `cache` is `auto` (the user's cache folder), `off` (nothing is
    written: the array is held in memory) or a folder. A pack that is found reads no image and reports no progress.

    Raises:
        DataError: more than 1 % of the images can't be decoded.
        OutputError: the cache can't be written.

    """
    if cache == "off" or not images:
        return (yield from _pack_in_memory(images, size, how, workers))
    root = Path(platformdirs.user_cache_dir("aecli"), "packs") if cache == "auto" else Path(cache)
    folder = root / _key(images, size, how)
    found = _read_pack(folder, images, size)
    if found is not None:
        return found
    building: Path | None = None
    try:
        building = _begin(root, len(images) * _image_bytes(size))
        yield from _build(building, images, size, how, workers)
        return _install(building, folder, images, size)
    except OSError as error:
        raise OutputError(
            f"The image cache {root} can't be written ({error.strerror or error}). "
            "Name another folder with --cache DIR, or keep the images in memory with --cache off."
        ) from error
    finally:
        if building is not None:
            shutil.rmtree(building, ignore_errors=True)


def _key(images: Sequence[ImageRef], size: int, how: str) -> str:
    what = [PACK_VERSION, PIL.__version__, size, how]
    listing = [[image.name, image.fingerprint, image.revision] for image in images]
    return hashlib.sha256(json.dumps([what, listing]).encode()).hexdigest()


def _image_bytes(size: int) -> int:
    return 3 * size * size


# Decoding


def _decode_fitted(image: ImageRef, size: int, how: str) -> Pixels | str:
    """(3, S, S), contiguous; or the reason why there is none."""
    try:
        return np.ascontiguousarray(decode_fitted(image, size, how).transpose(2, 0, 1))
    except DecodeError as error:
        return error.reason


def _decode_all(
    images: Sequence[ImageRef], size: int, how: str, workers: int | None, keep: Callable[[Pixels], object]
) -> Generator[Progress, None, tuple[list[str], dict[str, str]]]:
    """Give each decoded image to `keep`, in order; returns the names kept, and the skipped with their reasons."""
    names: list[str] = []
    skipped: dict[str, str] = {}
    reported = 0.0
    with closing(ordered_map(partial(_decode_fitted, size=size, how=how), images, workers)) as results:
        for done, (image, result) in enumerate(zip(images, results, strict=True), start=1):
            if isinstance(result, str):
                skipped[image.name] = result
            else:
                keep(result)
                names.append(image.name)
            if time.monotonic() - reported >= _REPORT_SECONDS or done == len(images):
                reported = time.monotonic()
                yield Progress("decoding", done, len(images))
    if len(skipped) > BROKEN_LIMIT * len(images):
        first = "; ".join(f"{name} ({reason})" for name, reason in list(skipped.items())[:3])
        raise DataError(
            f"{len(skipped)} of {len(images)} images can't be decoded, more than {BROKEN_LIMIT:.0%}: "
            f"{first}{'; …' if len(skipped) > 3 else ''}. Repair or remove them."
        )
    return names, skipped


def _pack_in_memory(
    images: Sequence[ImageRef], size: int, how: str, workers: int | None
) -> Generator[Progress, None, Pack]:
    try:
        array = np.empty((len(images), 3, size, size), dtype=np.uint8)
    except MemoryError as error:
        gigabytes = len(images) * _image_bytes(size) / 1e9
        raise DataError(f"--cache off: {gigabytes:.1f} GB of images don't fit into memory. Use --cache DIR.") from error
    places = iter(array)

    def keep(pixels: Pixels) -> None:
        next(places)[:] = pixels

    names, skipped = yield from _decode_all(images, size, how, workers, keep)
    array = array[: len(names)]
    array.flags.writeable = False
    return Pack(names, array, skipped)


# On disk


def _read_pack(folder: Path, images: Sequence[ImageRef], size: int) -> Pack | None:
    """The pack in `folder`, or None where there is none that is whole and holds these images."""
    try:
        index: dict[str, Any] = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        names, skipped = list(index["names"]), dict(index["skipped"])
        whole = (folder / "images.u8").stat().st_size == len(names) * _image_bytes(size)
        if not whole or [image.name for image in images if image.name not in skipped] != names or not names:
            return None
        array = np.memmap(folder / "images.u8", dtype=np.uint8, mode="r", shape=(len(names), 3, size, size))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Pack(names, array, skipped)


def _begin(root: Path, most_bytes: int) -> Path:
    """A fresh folder to build in; what killed builds left a day ago and longer is removed."""
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob(f"{_BUILDING}*"):
        if time.time() - _last_change(leftover) > _LEFTOVER_SECONDS:
            shutil.rmtree(leftover, ignore_errors=True)
    free = shutil.disk_usage(root).free
    if 0 < free < most_bytes:  # some network file systems always state 0
        raise OSError(f"{most_bytes / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
    return _fresh_folder(root)


def _fresh_folder(root: Path) -> Path:
    """Not `tempfile.mkdtemp`: its folders are closed to the other users of a shared cache."""
    folder = root / f"{_BUILDING}{uuid.uuid4().hex}"
    folder.mkdir()
    return folder


def _last_change(folder: Path) -> float:
    """When `folder` or a file in it was last written, in seconds since 1970; a folder just gone counts as new."""
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    except OSError:
        return time.time()


def _build(
    building: Path, images: Sequence[ImageRef], size: int, how: str, workers: int | None
) -> Generator[Progress, None, None]:
    with open(building / "images.u8", "wb") as file:
        names, skipped = yield from _decode_all(images, size, how, workers, lambda pixels: file.write(pixels.data))
    flush(building / "images.u8")
    index = {"schema": PACK_VERSION, "size": size, "fit": how, "names": names, "skipped": skipped}
    (building / "index.json").write_text(json.dumps(index), encoding="utf-8")
    flush(building / "index.json")


def _install(building: Path, folder: Path, images: Sequence[ImageRef], size: int) -> Pack:
    """Rename what was built to `folder`, unless another process was first; replaces a damaged pack."""
    for _ in range(2):
        try:
            building.rename(folder)
        except OSError:
            theirs = _read_pack(folder, images, size)
            if theirs is not None:
                return theirs
            # Renamed before it is deleted, so that nobody meets half of it.
            damaged = _fresh_folder(folder.parent)
            if folder.exists():
                folder.rename(damaged / folder.name)
            shutil.rmtree(damaged, ignore_errors=True)
        else:
            if os.name == "posix":  # makes the rename itself last; not every system lets a folder be opened
                flush(folder.parent)
            break
    pack = _read_pack(folder, images, size)
    if pack is None:
        raise OSError(f"{folder} did not keep what was written")
    return pack
