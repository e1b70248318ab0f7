"""A SOURCE string becomes a list of images with relative names. Nothing is decoded here.

A new source is one function from the text after its prefix to a list of images, and one line in `PREFIXES`.
"""

import glob
import os
import re
import stat
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path

from aecli.configs.given_images import PYTHON, GivenImages
from aecli.data.image_ref import FileRef, ImageRef, split_indices
from aecli.data.sources.demo import list_demo
from aecli.data.sources.folders import list_folder
from aecli.data.sources.given import list_given
from aecli.data.sources.selection import SUFFIXES, Selection, is_image_name
from aecli.data.sources.shards import is_pattern, is_stream, list_shards
from aecli.data.sources.torchvision_sets import list_torchvision
from aecli.data.sources.zips import list_zip
from aecli.errors import DataError
from aecli.progress import Listener, Notice, ignore

__all__ = ["PREFIXES", "SUFFIXES", "ImageRef", "list_images", "split_indices"]

PREFIXES: dict[str, Callable[[str], list[ImageRef]]] = {"torchvision": list_torchvision}


def list_images(
    source: str, listen: Listener = ignore, outputs: Sequence[Path] = (), selection: Selection | None = None
) -> list[ImageRef]:
    """List the images of a SOURCE, sorted by name; say to `listen` what looks like an image and is passed over.

    A folder, a `.zip` of one, an image file, `demo`, shards (see `list_shards`), `prefix:text` with a prefix of
    `PREFIXES`, or images given in Python. What exists as a path is a path, except for the bare word `demo` (write
    `./demo` for a folder of that name). Runs of aecli, and the paths `outputs` that the command writes to, are left
    out. `selection` collects what is passed over.

    Raises:
        DataError: the source is missing, unreadable, of no known kind, or holds no image.
    """
    selection = selection or Selection()
    if isinstance(source, GivenImages):
        images = list_given(source)
    elif source == "demo":
        images = list_demo()
    elif is_stream(source):
        images = list_shards(source, selection.wants)
    elif (mode := _file_mode(source)) is not None:
        if stat.S_ISDIR(mode):
            images = list_folder(source, selection, outputs)
        elif not stat.S_ISREG(mode):
            raise DataError(f"{source} is neither a folder nor a .zip file")
        elif is_image_name(source):
            folder, name = os.path.split(source)
            images = [FileRef(name, folder, os.stat(source))]
        else:
            images = list_zip(source, selection.wants)
    else:
        images = _list_prefixed(source)
    notices = list(selection.notices(source))
    if not images:
        kinds = ", ".join(suffix.removeprefix(".") for suffix in SUFFIXES)
        raise DataError(
            f"{source} holds no images\nhint: {notices[0] if notices else f'names of images end in {kinds}'}"
        )
    for text in notices:
        listen(Notice(text))
    images.sort(key=attrgetter("name"))
    return images


def require_source(source: str, flag: str) -> None:
    """Raise DataError, which names the option `flag`, if a SOURCE is a path that isn't there, or of no known kind."""
    if isinstance(source, GivenImages):
        return
    if is_gone(source):
        raise DataError(f"{flag} {source or repr(source)}: no such folder or file")
    if source != "demo" and not is_stream(source) and _file_mode(source) is None:
        require_prefix(source)


def is_gone(source: str) -> bool:
    """Whether a SOURCE is a path, or a pattern of paths, at which there is nothing; names of other kinds are not."""
    if source == "demo" or (is_stream(source) and not is_pattern(source)):
        return False
    if is_pattern(source):
        return _file_mode(source) is None and not glob.glob(source, recursive=True)
    return _file_mode(source) is None and not _is_prefixed(source)


def _is_prefixed(source: str) -> bool:
    """Whether a SOURCE has the form `prefix:text`; one letter before a colon is a Windows drive."""
    prefix, colon, _ = source.partition(":")
    return bool(colon) and re.fullmatch(r"[A-Za-z][A-Za-z0-9_+.-]+", prefix) is not None


def _file_mode(source: str) -> int | None:
    """The mode that `stat` gives for the path `source`; None where there is no such path."""
    try:
        return os.stat(source).st_mode
    except PermissionError as error:
        raise DataError(f"{source} can't be read: {error.strerror}") from error
    except (OSError, ValueError):  # absent, too long for a path, or holding a NUL
        return None


# Sources by name


def _list_prefixed(source: str) -> list[ImageRef]:
    prefix, text = require_prefix(source)
    return PREFIXES[prefix](text)


def require_prefix(source: str) -> tuple[str, str]:
    """Split `prefix:text`; raises DataError if the prefix is not one of `PREFIXES`."""
    prefix, colon, text = source.partition(":")
    if colon and prefix in PREFIXES:
        return prefix, text
    if prefix == PYTHON and colon:
        raise DataError(
            f"{text} was given in Python, and is not kept\n"
            "hint: name images with --data, or go on in Python with the same data="
        )
    if _is_prefixed(source):
        known = ", ".join(f"{name}:…" for name in sorted([*PREFIXES, "hf"]))
        raise DataError(
            f"{source}: unknown kind of source {prefix}:\nhint: a source is a folder, a .zip, .tar or .parquet file, "
            f"demo, {known}"
        )
    raise DataError(f"{source or repr(source)}: no such folder or .zip file")
