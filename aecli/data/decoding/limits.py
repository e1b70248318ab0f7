"""How much of a machine an image may take: a file that would take more is refused before it is decoded.

Pillow bounds little of this. Each limit lies far above what cameras, scanners and image programs write.
"""

import re
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

from PIL.ImageFile import ImageFile

PIXEL_LIMIT = 2**28  # above what a 200-megapixel camera gives; decoding takes up to 20 bytes of memory for each
SIDE_LIMIT = 2**20  # pixels; resizing takes memory for each pixel of a side as well
SCAN_LIMIT = 100  # of a progressive JPEG: each is a pass over all of its pixels, for a few bytes of the file
NOTE_LIMIT = 100  # segments of EXIF in a JPEG: Pillow joins them in time that grows with their number squared
EXIF_LIMIT = 2**22  # bytes; a value of 8 bytes becomes an object of 300
VALUE_LIMIT = 2**18  # values in all tags of a TIFF, for the same reason; a strip has two of them
COVER_LIMIT = 8  # how often the strips of a TIFF may cover its pixels: more than once for each of its bands
RUN_LENGTH_LIMIT = 2**26  # pixels of a BMP in runs, which Pillow takes apart in Python
SPARE_TILE = 2**24  # pixels that a TIFF's tile may have even where the picture is smaller

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0")

# A marker of a JPEG, but for what stands inside of coded pixels: an escaped 0xFF, and restarts.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_SCAN, _END, _NOTE = 0xDA, 0xD9, 0xE1
_EXIF_START = b"Exif\0\0"  # of a note that is not XMP, of which there may be any number
_WITHOUT_LENGTH = frozenset((0x01, 0xC8, 0xD8, _END, *range(0xF0, 0xFE)))

# Tags of a TIFF (TIFF 6.0, EXIF 2.3).
_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 322, 323
_STRIP_OFFSETS = (273, 324)  # numbers whatever type they are said to have
_DIRECTORIES = (34665, 34853, 40965)  # EXIF, GPS, interoperability: directories of further tags
_BLOBS = (1, 2, 7)  # types that stay one piece: bytes, text, undefined
_NUMBERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}


class MemoryBudget:
    """`size` units of something, of which each of several threads takes some for a while, or waits until it can."""

    def __init__(self, size: int) -> None:
        """All of it is free."""
        self._size = self._free = size
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, amount: int) -> Iterator[None]:
        """Hold `amount`; all of it where that is more."""
        amount = min(amount, self._size)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            with self._changed:
                self._free += amount
                self._changed.notify_all()


def check_structure(source: bytes) -> None:
    """Refuse an encoded image that would keep Pillow busy with something other than its pixels.

    Raises:
        ValueError: its message says what there is too much of.
    """
    if source.startswith(b"\xff\xd8"):
        _check_jpeg(source)
    elif source.startswith(_TIFF_STARTS):
        _check_tiff(source)


def check_size(width: int, height: int) -> None:
    """Refuse what has too many pixels, or none; raises ValueError."""
    if width < 1 or height < 1:
        raise ValueError(f"it has no pixels ({width}x{height})")
    if width * height > PIXEL_LIMIT:
        raise ValueError(f"{width}x{height} is more than {PIXEL_LIMIT} pixels")
    if max(width, height) > SIDE_LIMIT:
        raise ValueError(f"{width}x{height}: a side is longer than {SIDE_LIMIT} pixels")


def check_tiles(opened: ImageFile) -> None:
    """Refuse a picture in strips that lie over each other, or in too many runs; raises ValueError."""
    if len(opened.tile) < 2:
        if any(tile[0] == "bmp_rle" for tile in opened.tile) and opened.width * opened.height > RUN_LENGTH_LIMIT:
            raise ValueError(f"{opened.width}x{opened.height} is more than {RUN_LENGTH_LIMIT} pixels in runs")
        return
    areas = []
    for tile in opened.tile:
        left, top, right, bottom = tile[1] or (0, 0, *opened.size)
        areas.append((tile[2], (right - left) * (bottom - top)))
    if sum(area for _, area in areas) > COVER_LIMIT * opened.width * opened.height:
        raise ValueError(f"its strips cover it more than {COVER_LIMIT} times")
    # Pillow reads a strip in pieces as long as it is to the next one.
    if any(0 < after - start < area // 8 for (start, area), (after, _) in pairwise(sorted(areas))):
        raise ValueError("its strips overlap in the file")


def _check_jpeg(source: bytes) -> None:
    scans = notes = 0
    position = 2
    while found := _MARKER.search(source, position):
        position = found.end()
        marker = source[position - 1]
        if marker == _END and scans:
            return
        scans += marker == _SCAN
        notes += marker == _NOTE and source.startswith(_EXIF_START, position + 2)
        if scans > SCAN_LIMIT:
            raise ValueError(f"it is coded in more than {SCAN_LIMIT} scans")
        if notes > NOTE_LIMIT:
            raise ValueError(f"it holds more than {NOTE_LIMIT} segments of EXIF")
        if marker not in _WITHOUT_LENGTH:
            position += max(2, int.from_bytes(source[position : position + 2], "big"))


def _check_tiff(source: bytes) -> None:
    if len(source) < 16:
        return
    order, is_big = "<>"[source.startswith(b"M")], source[2] == 43
    pointer, entry, number = ("Q", "HHQ8s", "Q") if is_big else ("I", "HHI4s", "H")
    layouts = tuple(struct.Struct(order + layout) for layout in (number, entry))
    pending = list(struct.unpack_from(order + pointer, source, 8 if is_big else 4))
    seen: set[int] = set()
    sides: dict[int, int] = {}
    values = 0
    while pending:
        if (offset := pending.pop()) in seen:
            continue
        for tag, kind, count, data in _entries(source, offset, *layouts):
            if (kind not in _BLOBS or tag in _STRIP_OFFSETS) and count <= len(source):  # longer ones can't be read
                values += count
            if values > VALUE_LIMIT:
                raise ValueError(f"its tags hold more than {VALUE_LIMIT} values")
            if count == 1 and kind in _NUMBERS:
                (value,) = struct.unpack_from(order + _NUMBERS[kind], data.ljust(8, b"\0"))
                if tag in _DIRECTORIES:
                    pending.append(value)
                elif not seen:
                    sides.setdefault(tag, value)
        seen.add(offset)
    tile_width, tile_height = sides.get(_TILE_WIDTH, 0), sides.get(_TILE_HEIGHT, 0)
    if tile_width * tile_height > max(2 * sides.get(_WIDTH, 0) * sides.get(_HEIGHT, 0), SPARE_TILE):
        raise ValueError(f"its tiles of {tile_width}x{tile_height} are larger than the picture")


def _entries(
    source: bytes, offset: int, number: struct.Struct, entry: struct.Struct
) -> Iterator[tuple[int, int, int, bytes]]:
    """(tag, type, count, data or where it is) of the directory at `offset`, as far as the file goes."""
    if offset + number.size > len(source):
        return
    (count,) = number.unpack_from(source, offset)
    start = offset + number.size
    there = (len(source) - start) // entry.size
    for index in range(min(count, there)):
        yield entry.unpack_from(source, start + index * entry.size)
