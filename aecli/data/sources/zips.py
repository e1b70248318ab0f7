"""A `.zip` of images becomes a list of them. Listing decompresses nothing, and nothing is unpacked to a disk."""

import posixpath
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

from aecli.data.image_ref import FILE_LIMIT, ImageRef
from aecli.data.sources.archives import check_folders, check_path
from aecli.errors import DataError, message_of, single_line

_LOCAL_HEADER = 30  # bytes before a member's name and data, at least
_UTF8_FLAG = 0x800
# The methods whose output zipfile bounds while reading: a few bytes of the others can become gigabytes at once.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

# What zipfile raises for a damaged table of contents, and for a damaged member.
_DAMAGED_ARCHIVE = (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error, ArithmeticError,
                    MemoryError)  # fmt: skip
_DAMAGED_MEMBER = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, struct.error)


def list_zip(source: str, is_wanted: Callable[[str], bool]) -> list[ImageRef]:
    """List the members of the zip file `source` whose relative path, with `/` between its parts, is wanted.

    The file stays open as long as one of them exists, so they are read from what it was even if it is replaced.

    Raises:
        DataError: it is no zip, can't be read, or holds a path that leads out of it, a name twice, or a member that is
            encrypted, too large, overlaps another or is compressed by another method than deflate.
    """
    archive = _open(source)
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


def _open(source: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(source)
    except PermissionError as error:
        raise DataError(f"{source} can't be read: {error.strerror}") from error
    except _DAMAGED_ARCHIVE as error:
        if source.lower().endswith(".zip"):
            raise DataError(f"{source} is a damaged or incomplete zip file ({message_of(error)})") from error
        raise DataError(f"{source} is not a zip file\nhint: name a folder or a .zip of images") from error


def _members(source: str, archive: zipfile.ZipFile, is_wanted: Callable[[str], bool]) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        path = _name_of(member).replace("\\", "/")
        name = posixpath.normpath(path)
        if path.endswith("/") or not is_wanted(name):
            continue
        _check_member(f"{source} holds {single_line(path)}", path, member)
        if name in members:
            raise DataError(f"{source} holds {single_line(name)} twice")
        members[name] = member
    check_folders(source, members)
    _check_overlaps(source, archive, list(members.values()))
    return members


def _name_of(member: zipfile.ZipInfo) -> str:
    """The member's name, UTF-8 where its bytes are: zips of Linux and macOS don't always set the flag that says so."""
    if member.flag_bits & _UTF8_FLAG:
        return member.filename
    try:
        return member.filename.encode("cp437").decode("utf-8")  # zipfile took them for code page 437
    except UnicodeError:
        return member.filename


def _check_member(holds: str, path: str, member: zipfile.ZipInfo) -> None:
    check_path(holds, path)
    if member.flag_bits & 0x1:
        raise DataError(f"{holds}, which is encrypted\nhint: unpack it with its password and name the folder")
    if member.file_size > FILE_LIMIT:
        raise DataError(f"{holds} of {member.file_size} bytes, more than {FILE_LIMIT}")
    if member.compress_type not in _METHODS:
        raise DataError(f"{holds}, which is not compressed by deflate\nhint: unpack it and name the folder")


def _check_overlaps(source: str, archive: zipfile.ZipFile, members: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse members that share bytes, by which a small file can hold any number of large ones."""
    table = archive.start_dir  # where the members end and the table of contents begins
    spans = sorted((each.header_offset, each.header_offset + _LOCAL_HEADER + each.compress_size) for each in members)
    if any(end > start for (_, end), (start, _) in pairwise([(0, 0), *spans, (table, table)])):
        raise DataError(f"{source} holds images that overlap: it is damaged or malicious")


def _without_top_folder(images: list[ImageRef], top: str) -> list[ImageRef]:
    """Names relative to the folder that was zipped, where the zip has its name: `photos.zip` of `photos/…`."""
    if not all(image.name.startswith(top) for image in images):
        return images
    for image in images:
        image.name = image.group = image.name.removeprefix(top)
    return images


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, lock: threading.Lock) -> bytes:
    """The member's bytes; raises OSError where it is damaged."""
    try:
        with lock, archive.open(member) as file:
            return file.read(member.file_size)
    except _DAMAGED_MEMBER as error:
        raise OSError(message_of(error)) from error
