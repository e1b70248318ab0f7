"""Image files written byte by byte, as no encoder would."""

import random
import struct
import zlib


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG, its checksum right."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def hand_made_png(width, height, depth, colour, rows, extra=b""):
    """A PNG written by hand: `rows` are the unfiltered rows' bytes."""

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return (
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")
    )


def tiff(tags: dict[int, tuple[int, int, bytes]], data: bytes = b"", order: str = "<", is_big: bool = False) -> bytes:
    """A TIFF written by hand: `data` at byte 8 (16 of a BigTIFF), then one directory of tag -> (type, count, value)."""
    start, inline, word = (16, 8, "Q") if is_big else (8, 4, "I")
    place = start + len(data)
    size = (8 if is_big else 2) + len(tags) * (20 if is_big else 12) + inline
    directory, beyond = struct.pack(order + ("Q" if is_big else "H"), len(tags)), b""
    for tag, (kind, count, value) in sorted(tags.items()):
        if len(value) > inline:
            value, beyond = struct.pack(order + word, place + size + len(beyond)), beyond + value
        directory += struct.pack(order + "HH" + word, tag, kind, count) + value.ljust(inline, b"\0")
    magic = (b"II" if order == "<" else b"MM") + struct.pack(
        order + ("HHH" if is_big else "H"), *((43, 8, 0) if is_big else (42,))
    )
    return magic + struct.pack(order + word, place) + data + directory + struct.pack(order + word, 0) + beyond


def tiff_tags(
    width: int, height: int, order: str = "<", **values: int | list[int]
) -> dict[int, tuple[int, int, bytes]]:
    """The tags of a grey 8-bit TIFF as `tiff` takes them; `t273=[8, 90]` adds or changes one, of type LONG."""
    numbers: dict[int, list[int]] = {256: [width], 257: [height], 258: [8], 259: [1], 262: [1], 277: [1]}
    for name, value in values.items():
        numbers[int(name[1:])] = value if isinstance(value, list) else [value]
    return {tag: (4, len(each), struct.pack(f"{order}{len(each)}I", *each)) for tag, each in numbers.items()}


def bmp(bits: int, compression: int, data: bytes, width: int = 8, height: int = 8, header: int = 40) -> bytes:
    """A BMP written by hand, its colours random."""
    palette = random.Random(bits).randbytes(4 << bits) if bits <= 8 else b""
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F) if compression == 3 else b""
    start = 14 + header + len(masks) + len(palette)
    if header == 12:
        palette = b"".join(palette[i : i + 3] for i in range(0, len(palette), 4))
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
        start = 14 + header + len(palette)
    else:
        info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 0, 0, 0, 0)
    return struct.pack("<2sIHHI", b"BM", start + len(data), 0, 0, start) + info + masks + palette + data
