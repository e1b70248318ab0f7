"""A SOURCE string becomes a list of images with relative names. Nothing is decoded here.

A new source is one function from the text after its prefix to a list of images, and one line in `PREFIXES`.
"""

import os
import posixpath
import re
import stat
import threading
import zipfile
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from pathlib import Path

from aecli.data.demo import list_demo
from aecli.data.images import FileRef, ImageRef, split_indices
from aecli.data.torchvision_sets import list_torchvision
from aecli.errors import DataError

__all__ = ["PREFIXES", "SUFFIXES", "ImageRef", "list_images", "split_indices"]

PREFIXES: dict[str, Callable[[str], list[ImageRef]]] = {"torchvision": list_torchvision}
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
ZIP_MEMBER_LIMIT = 2**30  # bytes


def list_images(source: str) -> list[ImageRef]:
    """List the images of a SOURCE, sorted by name.

    A folder, a `.zip` of one, `demo`, or `prefix:text` with a prefix of `PREFIXES`. What exists as a path is taken as
    a path, but for the bare word `demo` (write `./demo` for a folder of that name).

    Raises:
        DataError: the source is missing, unreadable, of no known kind, or holds no image.

    """
    if source == "demo":
        images = list_demo()
    elif (mode := _file_mode(source)) is not None:
        if stat.S_ISDIR(mode):
            images = _list_folder(source)
        elif stat.S_ISREG(mode):
            images = _list_zip(source)
        else:
            raise DataError(f"{source} is neither a folder nor a .zip file.")
    else:
        images = _list_prefixed(source)
    if not images:
        kinds = ", ".join(suffix.removeprefix(".") for suffix in SUFFIXES)
        raise DataError(f"{source} holds no images: expected files that end in {kinds}.")
    images.sort(key=attrgetter("name"))
    return images


def _is_image_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _is_hidden(part: str) -> bool:
    """Dot-files and dot-folders, and the folder of Finder's notes that macOS puts into zips."""
    return part.startswith(".") or part == "__MACOSX"


def _file_mode(source: str) -> int | None:
    """What `stat` says of the path `source`; None where there is no such path."""
    try:
        return os.stat(source).st_mode
    except PermissionError as error:
        raise DataError(f"{source} can't be read: {error.strerror}.") from error
    except (OSError, ValueError):  # absent, too long for a path, or holding a NUL
        return None


# Folders


def _list_folder(source: str) -> list[ImageRef]:
    found: list[ImageRef] = []
    # (prefix of the names, path, the real folders above it: a link back to one of them is a loop)
    pending: list[tuple[str, str, frozenset[str]]] = [("", source, frozenset())]
    while pending:
        prefix, folder, above = pending.pop()
        real = os.path.realpath(folder)
        if real in above:
            continue
        try:
            with os.scandir(folder) as scan:
                for entry in scan:
                    if _is_hidden(entry.name):
                        continue
                    status = _status(entry)
                    if status is not None and stat.S_ISDIR(status.st_mode):
                        pending.append((f"{prefix}{entry.name}/", entry.path, above | {real}))
                    elif (status is None or stat.S_ISREG(status.st_mode)) and _is_image_name(entry.name):
                        found.append(FileRef(prefix + entry.name, source, status))
        except OSError as error:
            raise DataError(f"{folder} can't be read: {error.strerror}.") from error
    return found


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """What `stat` says; None for a dangling link, to be met again as an image that can't be read, not passed over."""
    try:
        return os.stat(entry.path)  # on Windows, `entry.stat()` knows less
    except OSError:
        return None


# Zip files


def _list_zip(source: str) -> list[ImageRef]:
    try:
        archive = zipfile.ZipFile(source)
    except PermissionError as error:
        raise DataError(f"{source} can't be read: {error.strerror}.") from error
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        if source.lower().endswith(".zip"):
            raise DataError(f"{source} is a damaged or incomplete zip file ({error}).") from error
        raise DataError(f"{source} is a file but no zip: expected a folder or a .zip of images.") from error
    lock = threading.Lock()  # ZipFile counts its open members without one
    images: dict[str, ImageRef] = {}
    for member in archive.infolist():
        name = member.filename.replace("\\", "/")
        if member.is_dir() or not _is_image_name(name):
            continue
        _check_member(source, name, member)
        name = posixpath.normpath(name)
        if any(_is_hidden(part) for part in name.split("/")):
            continue
        if name in images:
            raise DataError(f"{source} holds {name} twice.")
        load = partial(_read_member, archive, member, lock)
        images[name] = ImageRef(name, name, f"{member.file_size}:{member.CRC:08x}", load)
    return _without_top_folder(list(images.values()), f"{Path(source).stem}/")


def _without_top_folder(images: list[ImageRef], top: str) -> list[ImageRef]:
    """Names relative to the folder that was zipped, where the zip is called after it: `photos.zip` of `photos/…`."""
    if not all(image.name.startswith(top) for image in images):
        return images
    for image in images:
        image.name = image.group = image.name.removeprefix(top)
    return images


def _check_member(source: str, name: str, member: zipfile.ZipInfo) -> None:
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in name.split("/"):
        raise DataError(f"{source} holds {name}, a path that leads out of it: not a zip to trust.")
    if member.flag_bits & 0x1:
        raise DataError(f"{source} is encrypted ({name}): unpack it with its password and give the folder.")
    if member.file_size > ZIP_MEMBER_LIMIT:
        raise DataError(f"{source} holds {name} of {member.file_size} bytes: more than {ZIP_MEMBER_LIMIT} is refused.")


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, lock: threading.Lock) -> bytes:
    with lock, archive.open(member) as file:
        return file.read(member.file_size)


# Sources by name


def _list_prefixed(source: str) -> list[ImageRef]:
    prefix, colon, text = source.partition(":")
    if colon and prefix in PREFIXES:
        return PREFIXES[prefix](text)
    # One letter before a colon is a Windows drive.
    if colon and re.fullmatch(r"[A-Za-z][A-Za-z0-9_+.-]+", prefix):
        known = ", ".join(f"{name}:…" for name in sorted(PREFIXES))
        raise DataError(f"{source}: no source is called {prefix}: (there are folders, .zip files, demo and {known}).")
    raise DataError(f"{source or repr(source)}: no such folder or .zip file.")
