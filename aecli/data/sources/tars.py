"""Tar shards as a list of images: an index of their headers, and random access to what lies behind them."""

import os
import posixpath
import tarfile
from collections.abc import Callable, Sequence
from functools import partial

from aecli.data.image_ref import FILE_LIMIT, ImageRef
from aecli.data.sources.archives import check_folders, check_path
from aecli.errors import DataError, message_of, single_line

# What tarfile raises for damaged headers.
_DAMAGE = (tarfile.TarError, OSError, ValueError, EOFError, ArithmeticError, LookupError, MemoryError)


def list_tars(files: Sequence[str], is_wanted: Callable[[str], bool]) -> list[ImageRef]:
    """List the images in local, uncompressed tar files whose path is wanted; of several files, below each one's name.

    Raises:
        DataError: one is no tar, can't be read, or holds what an honest one doesn't: a path that leads out of it, a
            name twice, an enormous member.
    """
    images: dict[str, ImageRef] = {}
    for file in files:
        folder = f"{posixpath.splitext(os.path.basename(file))[0]}/" if len(files) > 1 else ""
        for image in _list_one(file, folder, is_wanted):
            if image.name in images:
                raise DataError(f"{file} holds {single_line(image.name)} twice.")
            images[image.name] = image
    check_folders(files[0] if len(files) == 1 else f"{files[0]} …", images)
    return list(images.values())


def _list_one(file: str, folder: str, is_wanted: Callable[[str], bool]) -> list[ImageRef]:
    found = []
    try:
        status = os.stat(file)
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # else all headers are kept
                path = member.name
                name = posixpath.normpath(path)
                if not member.isreg() or member.issparse() or not is_wanted(name):
                    continue
                check_path(f"{file} holds {single_line(path)}", path)
                if member.size > FILE_LIMIT or member.offset_data + member.size > status.st_size:
                    raise DataError(
                        f"{file} holds {single_line(path)} of {member.size} bytes: that can't be, or is refused."
                    )
                versions = f"{member.size}:{status.st_mtime_ns}:{member.offset_data}", str(status.st_ctime_ns)
                load = partial(_read, file, member.offset_data, member.size)
                found.append(ImageRef(folder + name, folder + name, versions[0], load, versions[1]))
    except _DAMAGE as error:
        raise DataError(f"{file} is a damaged or incomplete tar file ({message_of(error)}).") from error
    return found


def _read(file: str, offset: int, size: int) -> bytes:
    with open(file, "rb") as opened:
        opened.seek(offset)
        content = opened.read(size)
    if len(content) < size:
        raise OSError(f"{file} has become shorter")
    return content
