"""A `.zip` of images becomes a list of them. Nothing is decompressed here, and nothing ever unpacked to a disk."""

import posixpath
import struct
import threading
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

from aecli.data.image_ref import FILE_LIMIT, ImageRef
from aecli.data.sources.archives import check_folders, check_path
from aecli.errors import DataError, single_line

_LOCAL_HEADER = 30  # bytes before a member's name and data, at the least
# The methods whose output zipfile bounds while it reads: a few bytes of the others can become gigabytes at once.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

# What zipfile raises for a damaged table of contents.
_DAMAGE = (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error, ArithmeticError, MemoryError)


def list_zip(source: str, is_wanted: Callable[[str], bool]) -> list[ImageRef]:
    """List the members of the zip file `source` whose relative path, with `/` between its parts, is wanted.

    The file stays open as long as there is one of them, so they are read from what it was even if it is replaced.

    Raises:
        DataError: it is no zip, can't be read, or holds what an honest one doesn't: a path that leads out of it, a
            name twice, a member that is encrypted, enormous, inside of another or compressed by a rare method.
    """
    try:
        archive = zipfile.ZipFile(source)
    except PermissionError as error:
        raise DataError(f"{source} can't be read: {error.strerror}.") from error
    except _DAMAGE as error:
        if source.lower().endswith(".zip"):
            reason = single_line(str(error) or type(error).__name__)
            raise DataError(f"{source} is a damaged or incomplete zip file ({reason}).") from error
        raise DataError(f"{source} is a file but no zip: expected a folder or a .zip of images.") from error
    try:
        members = _members(source, archive, is_wanted)
    except DataError:
        archive.close()
        raise
    lock = threading.Lock()  # ZipFile counts its open members without one
    images = [
        ImageRef(name, name, f"{member.file_size}:{member.CRC:08x}", partial(_read_member, archive, member, lock))
        for name, member in members.items()
    ]
    return _without_top_folder(images, f"{Path(source).stem}/")


def _members(source: str, archive: zipfile.ZipFile, is_wanted: Callable[[str], bool]) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        path = member.filename.replace("\\", "/")
        name = posixpath.normpath(path)
        if path.endswith("/") or not is_wanted(name):
            continue
        _check_member(f"{source} holds {single_line(path)}", path, member)
        if name in members:
            raise DataError(f"{source} holds {single_line(name)} twice.")
        members[name] = member
    check_folders(source, members)
    _check_places(source, archive, list(members.values()))
    return members


def _check_member(holds: str, path: str, member: zipfile.ZipInfo) -> None:
    check_path(holds, path)
    if member.flag_bits & 0x1:
        raise DataError(f"{holds}, which is encrypted: unpack it with its password and give the folder.")
    if member.file_size > FILE_LIMIT:
        raise DataError(f"{holds} of {member.file_size} bytes: more than {FILE_LIMIT} is refused.")
    if member.compress_type not in _METHODS:
        raise DataError(f"{holds}, compressed otherwise than by deflate: unpack it and give the folder.")


def _check_places(source: str, archive: zipfile.ZipFile, members: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse members that share their bytes: by these, a small file can hold any number of large ones."""
    table = archive.start_dir  # where the members end and the table of contents begins
    places = sorted((each.header_offset, each.header_offset + _LOCAL_HEADER + each.compress_size) for each in members)
    if any(end > start for (_, end), (start, _) in pairwise([(0, 0), *places, (table, table)])):
        raise DataError(f"{source} holds images that overlap: not a zip to trust.")


def _without_top_folder(images: list[ImageRef], top: str) -> list[ImageRef]:
    """Names relative to the folder that was zipped, where the zip is called after it: `photos.zip` of `photos/…`."""
    if not all(image.name.startswith(top) for image in images):
        return images
    for image in images:
        image.name = image.group = image.name.removeprefix(top)
    return images


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, lock: threading.Lock) -> bytes:
    with lock, archive.open(member) as file:
        return file.read(member.file_size)
