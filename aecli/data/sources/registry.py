"""A SOURCE string becomes a list of images with relative names. Nothing is decoded here.

A new source is one function from the text after its prefix to a list of images, and one line in `PREFIXES`.
"""

import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from operator import attrgetter

from aecli.data.image_ref import FileRef, ImageRef, split_indices
from aecli.data.sources.demo import list_demo
from aecli.data.sources.shards import IMAGE_KINDS, is_stream, list_shards
from aecli.data.sources.torchvision_sets import list_torchvision
from aecli.data.sources.zips import list_zip
from aecli.errors import DataError, single_line

__all__ = ["PREFIXES", "SUFFIXES", "ImageRef", "list_images", "split_indices"]

PREFIXES: dict[str, Callable[[str], list[ImageRef]]] = {"torchvision": list_torchvision}
SUFFIXES = tuple(f".{kind}" for kind in IMAGE_KINDS)
VISIT_LIMIT = 100  # ways to one folder: links that branch and meet again make 2^n of n


def list_images(source: str) -> list[ImageRef]:
    """List the images of a SOURCE, sorted by name.

    A folder, a `.zip` of one, `demo`, shards (see `list_shards`), or `prefix:text` with a prefix of `PREFIXES`. What
    exists as a path is a path, except for the bare word `demo` (write `./demo` for a folder of that name).

    Raises:
        DataError: the source is missing, unreadable, of no known kind, or holds no image.
    """
    if source == "demo":
        images = list_demo()
    elif is_stream(source):
        images = list_shards(source, _is_wanted)
    elif (mode := _file_mode(source)) is not None:
        if stat.S_ISDIR(mode):
            images = _list_folder(source)
        elif stat.S_ISREG(mode):
            images = list_zip(source, _is_wanted)
        else:
            raise DataError(f"{source} is neither a folder nor a .zip file")
    else:
        images = _list_prefixed(source)
    if not images:
        raise DataError(f"{source} holds no images\nhint: names of images end in {', '.join(IMAGE_KINDS)}")
    images.sort(key=attrgetter("name"))
    return images


def _is_image_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _is_wanted(path: str) -> bool:
    return _is_image_name(path) and not any(_is_hidden(part) for part in path.split("/"))


def _is_hidden(part: str) -> bool:
    """Dot-files and dot-folders, and the folder of metadata that macOS puts into zips."""
    return (part.startswith(".") and part != "..") or part == "__MACOSX"


def _file_mode(source: str) -> int | None:
    """The mode that `stat` gives for the path `source`; None where there is no such path."""
    try:
        return os.stat(source).st_mode
    except PermissionError as error:
        raise DataError(f"{source} can't be read: {error.strerror}") from error
    except (OSError, ValueError):  # absent, too long for a path, or holding a NUL
        return None


# Folders


def _list_folder(source: str) -> list[ImageRef]:
    images: list[ImageRef] = []
    # (prefix of the names, path, the real folders above it: a link back to one of them is a loop)
    pending: list[tuple[str, str, frozenset[str]]] = [("", source, frozenset())]
    visits: Counter[str] = Counter()
    while pending:
        prefix, folder, above = pending.pop()
        real = os.path.realpath(folder)
        if real in above:
            continue
        visits[real] += 1
        if visits[real] > VISIT_LIMIT:
            raise DataError(
                f"{single_line(real)}: more than {VISIT_LIMIT} symbolic links lead to it\nhint: remove some of them"
            )
        for entry in _entries(folder):
            if _is_hidden(entry.name):
                continue
            status = _status(entry)
            if status is not None and stat.S_ISDIR(status.st_mode):
                pending.append((f"{prefix}{entry.name}/", entry.path, above | {real}))
            elif (status is None or stat.S_ISREG(status.st_mode)) and _is_image_name(entry.name):
                images.append(FileRef(prefix + entry.name, source, status))
    return images


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """Yield what a folder holds; raises DataError where it can't be read."""
    try:
        with os.scandir(folder) as scan:
            yield from scan
    except OSError as error:
        raise DataError(f"{single_line(folder)} can't be read: {error.strerror}") from error


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """The result of `stat`; None for a dangling link, which is listed and then reported as unreadable."""
    try:
        return os.stat(entry.path)  # on Windows, `entry.stat()` knows less
    except OSError:
        return None


# Sources by name


def _list_prefixed(source: str) -> list[ImageRef]:
    prefix, colon, text = source.partition(":")
    if colon and prefix in PREFIXES:
        return PREFIXES[prefix](text)
    # One letter before a colon is a Windows drive.
    if colon and re.fullmatch(r"[A-Za-z][A-Za-z0-9_+.-]+", prefix):
        known = ", ".join(f"{name}:…" for name in sorted([*PREFIXES, "hf"]))
        raise DataError(
            f"{source}: unknown kind of source {prefix}:\nhint: a source is a folder, a .zip, .tar or .parquet file, "
            f"demo, {known}"
        )
    raise DataError(f"{source or repr(source)}: no such folder or .zip file")
