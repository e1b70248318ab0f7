"""Directories of tags in a TIFF file, read as far as the file goes (TIFF 6.0, BigTIFF)."""

import struct
from collections.abc import Iterator

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
SAMPLES, PLANAR, TILE_WIDTH, TILE_HEIGHT, SAMPLE_FORMAT = 277, 284, 322, 323, 339
SUBFILE_TYPE = 254
UNSIGNED, SIGNED, FLOAT = 1, 2, 3  # of SAMPLE_FORMAT
STARTS = (b"II*\0", b"MM\0*", b"II+\0")

_HEADER = 16  # bytes, of BigTIFF
_MAX_PAGES = 1000  # followed from directory to directory
_REDUCED_OR_MASK = 0b101  # bits of SUBFILE_TYPE: a thumbnail, a transparency mask
_INTEGER_TYPES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}

Entry = tuple[int, int, int, bytes]  # tag, type, number of values, the value or its offset


class TiffStructure:
    """The byte order of a TIFF file, and its directories."""

    def __init__(self, source: bytes) -> None:
        """`source` begins with one of `STARTS`."""
        self.source = source
        self.order, is_big = "<>"[source.startswith(b"M")], source[2] == 43
        layouts = ("Q", "Q", "HHQ8s") if is_big else ("I", "H", "HHI4s")
        self._pointer, self._number, self._entry = (struct.Struct(self.order + layout) for layout in layouts)
        self.first = self._pointer.unpack_from(source, 8 if is_big else 4)[0] if len(source) >= _HEADER else 0

    def entries(self, offset: int) -> Iterator[Entry]:
        """Yield those of the directory at `offset`, as far as the file goes."""
        start = offset + self._number.size
        if start > len(self.source):
            return
        available = (len(self.source) - start) // self._entry.size
        count = min(self._count(offset), available)
        yield from self._entry.iter_unpack(memoryview(self.source)[start : start + count * self._entry.size])

    def value(self, kind: int, data: bytes) -> int | None:
        """Return the single integer that an entry of that type holds, or None for another type."""
        if kind not in _INTEGER_TYPES:
            return None
        return int(struct.unpack_from(self.order + _INTEGER_TYPES[kind], data.ljust(8, b"\0"))[0])

    def first_values(self) -> dict[int, int]:
        """Return the first integer of each tag of the first directory."""
        found: dict[int, int] = {}
        for tag, kind, count, data in self.entries(self.first):
            if kind in _INTEGER_TYPES and struct.calcsize(_INTEGER_TYPES[kind]) * count > len(data):
                at = self._pointer.unpack(data)[0]
                data = self.source[at : at + len(data)]
            if (value := self.value(kind, data)) is not None:
                found.setdefault(tag, value)
        return found

    def pages(self) -> int:
        """Count the directories that hold a page, not a thumbnail or mask; at most a thousand."""
        offset, pages, seen = self.first, 0, set[int]()
        while offset and offset not in seen and len(seen) < _MAX_PAGES:
            seen.add(offset)
            end = offset + self._number.size
            if end > len(self.source):
                break
            types = (self.value(kind, data) for tag, kind, _, data in self.entries(offset) if tag == SUBFILE_TYPE)
            pages += not (next(types, None) or 0) & _REDUCED_OR_MASK
            end += self._count(offset) * self._entry.size
            if end + self._pointer.size > len(self.source):
                break
            offset = self._pointer.unpack_from(self.source, end)[0]
        return pages

    def _count(self, offset: int) -> int:
        return int(self._number.unpack_from(self.source, offset)[0])


def explain_unreadable(source: bytes, reason: str) -> str | None:
    """Say what of a TIFF's kind is not supported, in a user's words; None where `reason`, Pillow's, says enough."""
    tags = TiffStructure(source)
    if tags.first >= len(source):
        return "cut short: the file ends before its table of contents"
    values = tags.first_values()
    samples, bits = values.get(SAMPLES, 1), values.get(BITS, 1)
    if samples not in (1, 3, 4):
        return f"{samples} channels, expected 1, 3 or 4"
    if samples > 1 and values.get(SAMPLE_FORMAT) == FLOAT:
        return "floating-point colour: save it with 8 or 16 bits"
    if values.get(SAMPLE_FORMAT) == SIGNED:
        return f"signed {bits}-bit numbers: save it with unsigned ones"
    if bits > 16:
        return f"{bits}-bit samples, which are not supported: save it with 8 or 16 bits"
    if reason == "unknown pixel mode":
        kind = f"{samples} channel{'s' if samples > 1 else ''} of {bits} bits"
        return f"{kind} in a layout that is not supported: save it as PNG"
    return None
