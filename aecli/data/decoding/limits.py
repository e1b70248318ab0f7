"""How much memory and time an image may take: a file that would take more is refused before it is decoded.

Pillow bounds little of this. Each limit lies far above what cameras, scanners and image programs write.
"""

import re
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from PIL.ImageFile import ImageFile

from aecli.data.decoding.pillow_calls import ImageError
from aecli.data.decoding.tiff import HEIGHT, STARTS, TILE_HEIGHT, TILE_WIDTH, WIDTH, TiffStructure

# Costs without a limit: CPU time on one core and memory with Pillow 13.0.
PIXEL_LIMIT = 2**28  # above what a 200-megapixel camera gives; decoding takes up to 20 bytes of memory for each
SIDE_LIMIT = 2**20  # pixels; resizing takes memory for each pixel of a side as well
SCAN_LIMIT = 100  # of a progressive JPEG. 300 of 2^26 pixels: a file of 0.3 MiB, 14 s
EXIF_SEGMENT_LIMIT = 100  # of a JPEG, joined in quadratic time. 10^5: 1.3 MiB, 0.7 s; 3*10^5: 4 MiB, 5 s
EXIF_LIMIT = 2**22  # bytes, of which every 8 can become an object of 300
VALUE_LIMIT = 2**18  # in all tags of a TIFF; a strip has two. 2*10^6 fractions: 15 MiB, 4 s, 290 MiB of memory
COVER_LIMIT = 8  # how often a TIFF's strips may cover it: once a band in honest ones. 1,000 at one place: 16 MiB, 2 s
OVERLAP_LIMIT = 8  # strips in the bytes of one, read in pieces in quadratic time. 4,096 a byte apart: 28 KiB, 8 s
RUN_LENGTH_LIMIT = 2**26  # pixels of a run-length coded BMP, decoded in Python. At the limit: 32 KiB, 8 s
CHUNK_LIMIT = 2**20  # of a PNG, 8 KiB each in common ones: more than 8 GiB of pixels
NUMBERS_LIMIT = 2**22  # pixels of a PPM that Pillow decodes in Python: as text, or of unusual range. At it: 10 s
SPARE_TILE = 2**24  # pixels of a TIFF's tile beyond the picture. A tile of 2^30: a file of 1 KiB, 1 GiB of memory

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNK = struct.Struct(">I4s")
_CHECKED_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"tRNS")

# A JPEG marker; coded pixels hold none but escaped 0xFF bytes and restart markers.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_SOS, _EOI, _APP1 = 0xDA, 0xD9, 0xE1
_EXIF_START = b"Exif\0\0"  # of an APP1 segment that is not XMP, of which there may be any number
_WITHOUT_LENGTH = frozenset((0x01, 0xC8, 0xD8, _EOI, *range(0xF0, 0xFE)))

# TIFF tags (TIFF 6.0, EXIF 2.3).
_OFFSET_TAGS = (273, 324)  # of strips and tiles: Pillow makes a number of each value, whatever its type
_DIRECTORY_TAGS = (34665, 34853, 40965)  # EXIF, GPS, interoperability: directories of further tags
_BYTES_TYPES = (1, 2, 7)  # kept as one object: bytes, text, undefined

_BAND_PIXELS = 2**22  # converted at once: intermediate arrays take up to 24 bytes a pixel


class MemoryBudget:
    """`size` units that threads reserve from; a thread waits while too few are free."""

    def __init__(self, size: int) -> None:
        """All units are free."""
        self._size = self._free = size
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, amount: int) -> Iterator[None]:
        """Hold `amount` units, or all of them where that is more than there are."""
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
    """Refuse an encoded image whose structure would take Pillow more memory or time than its pixels; raises ImageError.

    Nothing is raised for a damaged structure, which Pillow then reports.
    """
    if source.startswith(b"\xff\xd8"):
        _check_jpeg(source)
    elif source.startswith(_PNG_START):
        _check_png(source)
    elif source.startswith(STARTS):
        _check_tiff(source)


def check_size(width: int, height: int) -> None:
    """Refuse too many pixels, or none; raises ImageError."""
    if width < 1 or height < 1:
        raise ImageError(f"no pixels ({width}x{height})")
    if width * height > PIXEL_LIMIT:
        raise ImageError(f"{width}x{height} is more than {PIXEL_LIMIT} pixels")
    if max(width, height) > SIDE_LIMIT:
        raise ImageError(f"{width}x{height}: a side is longer than {SIDE_LIMIT} pixels")


def check_tiles(opened: ImageFile) -> None:
    """Refuse overlapping strips, or too many pixels that Pillow decodes in Python; raises ImageError."""
    pixels = opened.width * opened.height
    if any(tile[0] == "bmp_rle" for tile in opened.tile) and pixels > RUN_LENGTH_LIMIT:
        raise ImageError(f"{opened.width}x{opened.height} is more than {RUN_LENGTH_LIMIT} run-length coded pixels")
    if any(_is_decoded_in_python(tile) for tile in opened.tile) and pixels > NUMBERS_LIMIT:
        raise ImageError(f"{opened.width}x{opened.height} is more than {NUMBERS_LIMIT} pixels written as numbers")
    if len(opened.tile) < 2:
        return
    areas = []
    for tile in opened.tile:
        left, top, right, bottom = extents = tile[1] or (0, 0, *opened.size)
        if not all(isinstance(number, int) for number in (*extents, tile[2])):  # Pillow passes on a tag's fraction
            raise ImageError("damaged header (strips of fractional size)")
        areas.append((tile[2], (right - left) * (bottom - top)))
    if sum(area for _, area in areas) > COVER_LIMIT * pixels:
        raise ImageError(f"strips cover the picture more than {COVER_LIMIT} times")
    # Pillow reads a strip in pieces as long as it is to the next one, and joins them in quadratic time.
    if any(0 < after - start < area // OVERLAP_LIMIT for (start, area), (after, _) in pairwise(sorted(areas))):
        raise ImageError("strips overlap in the file")


def _is_decoded_in_python(tile: Any) -> bool:
    """Whether the tile is a PPM's, as text or of another peak than 255; peaks above are not left to Pillow."""
    return bool(tile[0] == "ppm_plain" or (tile[0] == "ppm" and tile[3][1] <= 255))


def _check_jpeg(source: bytes) -> None:
    """Count scans and EXIF segments from marker to marker, as Pillow and libjpeg do, up to the end of the image."""
    scans = exif_segments = 0
    position = 2
    while match := _MARKER.search(source, position):
        position = match.end()
        marker = source[position - 1]
        if marker == _EOI and scans:
            return
        scans += marker == _SOS
        exif_segments += marker == _APP1 and source.startswith(_EXIF_START, position + 2)
        if scans > SCAN_LIMIT:
            raise ImageError(f"more than {SCAN_LIMIT} scans")
        if exif_segments > EXIF_SEGMENT_LIMIT:
            raise ImageError(f"more than {EXIF_SEGMENT_LIMIT} segments of EXIF")
        if marker not in _WITHOUT_LENGTH:
            position += max(2, int.from_bytes(source[position : position + 2], "big"))


def _check_tiff(source: bytes) -> None:
    """Count the values in the tags of the first directory and of those below it, and compare tile and picture."""
    structure = TiffStructure(source)
    pending = [structure.first]
    seen: set[int] = set()
    sides: dict[int, int] = {}
    values = 0
    while pending:
        if (offset := pending.pop()) in seen:
            continue
        for tag, kind, count, data in structure.entries(offset):
            if (kind not in _BYTES_TYPES or tag in _OFFSET_TAGS) and count <= len(source):  # Pillow skips longer ones
                values += count
            if values > VALUE_LIMIT:
                raise ImageError(f"more than {VALUE_LIMIT} values in tags")
            if count == 1 and (value := structure.value(kind, data)) is not None:
                if tag in _DIRECTORY_TAGS:
                    pending.append(value)
                elif not seen:
                    sides.setdefault(tag, value)
        seen.add(offset)
    tile_width, tile_height = sides.get(TILE_WIDTH, 0), sides.get(TILE_HEIGHT, 0)
    if tile_width * tile_height > max(2 * sides.get(WIDTH, 0) * sides.get(HEIGHT, 0), SPARE_TILE):
        raise ImageError(f"tiles of {tile_width}x{tile_height} are larger than the picture")


def _check_png(source: bytes) -> None:
    """Compare the checksums of the chunks that hold the picture: Pillow skips those of its pixels."""
    position = len(_PNG_START)
    for _ in range(CHUNK_LIMIT):
        if position + 8 > len(source):
            return  # cut short, which Pillow reports
        length, kind = _PNG_CHUNK.unpack_from(source, position)
        end = position + 8 + length
        if kind in _CHECKED_CHUNKS and end + 4 <= len(source):
            if zlib.crc32(memoryview(source)[position + 4 : end]) != int.from_bytes(source[end : end + 4], "big"):
                raise ImageError("damaged: the checksum of its pixels is wrong")
        if kind == b"IEND":
            return
        position = end + 4
    raise ImageError(f"more than {CHUNK_LIMIT} chunks")


def bands(height: int, width: int, pixels: int = _BAND_PIXELS) -> Iterator[slice]:
    """Slices of rows, of about so many pixels, that cover the picture: a single one unless it is large."""
    rows = max(1, pixels // width)
    return (slice(top, min(top + rows, height)) for top in range(0, height, rows))
