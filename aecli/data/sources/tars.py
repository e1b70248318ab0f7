"""Tar shards as a list of images: an index of their headers, and random access to the members."""

import os
import posixpath
import tarfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from aecli.data.image_ref import FILE_LIMIT, ImageRef
from aecli.data.sources.archives import check_folders, check_path
from aecli.errors import DataError, message_of, single_line

# What tarfile raises for damaged headers.
_DAMAGE = (tarfile.TarError, OSError, ValueError, EOFError, ArithmeticError, LookupError, MemoryError)


def list_tars(files: Sequence[str], is_wanted: Callable[[str], bool]) -> list[ImageRef]:
    """List the images in local, uncompressed tar files whose path is wanted; of several files, below each one's name.

    Raises:
        DataError: a file is no tar, can't be read, or holds a path that leads out of it, a name twice, or an image
            that is too large or lies beyond the end of the file.
    """
    images: dict[str, ImageRef] = {}
    for file in files:
        folder = f"{posixpath.splitext(os.path.basename(file))[0]}/" if len(files) > 1 else ""
        for image in _list_one(file, folder, is_wanted):
            if image.name in images:
                raise DataError(f"{file} holds {single_line(image.name)} twice")
            images[image.name] = image
    check_folders(files[0] if len(files) == 1 else f"{files[0]} …", images)
    return list(images.values())


def _list_one(file: str, folder: str, is_wanted: Callable[[str], bool]) -> Iterator[ImageRef]:
    try:
        status = os.stat(file)
    except OSError as error:
        raise DataError(f"{file} can't be read: {error.strerror}") from error
    for member in _members(file):
        path = member.name
        name = posixpath.normpath(path)
        if not member.isreg() or member.issparse() or not is_wanted(name):
            continue
        check_path(f"{file} holds {single_line(path)}", path)
        if member.size > FILE_LIMIT or member.offset_data + member.size > status.st_size:
            reason = f"beyond the end of the file, or more than {FILE_LIMIT}"
            raise DataError(f"{file} holds {single_line(path)} of {member.size} bytes: {reason}")
        fingerprint = f"{member.size}:{status.st_mtime_ns}:{member.offset_data}"
        load = partial(_read, file, member.offset_data, member.size)
        yield ImageRef(folder + name, folder + name, fingerprint, load, str(status.st_ctime_ns))


def _members(file: str) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar file one by one; raises DataError where it is damaged."""
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep all headers
                yield member
    except _DAMAGE as error:
        raise DataError(f"{file} is a damaged or incomplete tar file ({message_of(error)})") from error


def _read(file: str, offset: int, size: int) -> bytes:
    with open(file, "rb") as opened:
        opened.seek(offset)
        content = opened.read(size)
    if len(content) < size:
        raise OSError(f"{file} is shorter than when it was listed")
    return content
