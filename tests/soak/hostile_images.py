"""Image files and zips made hostile by changes that decoders get far into."""

import random
import struct
import zlib
from collections.abc import Callable

from tests.support.raw_images import png_chunk

EXTREMES = (0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**24, 2**28, 2**31 - 1, 2**31, 2**32 - 1)


# Changes: (content, dice, any seed of the others) -> content


def _cut(content: bytes, dice: random.Random, _: bytes) -> bytes:
    return content[: dice.randrange(len(content) + 1)]


def _flipped(content: bytes, dice: random.Random, _: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(dice.choice((1, 1, 2, 4, 16))):
        changed[_place(content, dice)] ^= 1 << dice.randrange(8)
    return bytes(changed)


def _place(content: bytes, dice: random.Random) -> int:
    """Anywhere, half of the times near the beginning, where headers are."""
    return dice.randrange(min(len(content), dice.choice((60, 200, len(content), len(content)))))


def _number(content: bytes, dice: random.Random, _: bytes) -> bytes:
    """A field of 1, 2, 4 or 8 bytes becomes an extreme of either byte order."""
    size, place = dice.choice((1, 2, 2, 4, 4, 8)), _place(content, dice)
    value = (dice.choice(EXTREMES) + dice.choice((-1, 0, 0, 1))) % (1 << 8 * size)
    return content[:place] + value.to_bytes(size, dice.choice(("little", "big"))) + content[place + size :]


def _moved(content: bytes, dice: random.Random, _: bytes) -> bytes:
    """A piece left out, there twice, or noise."""
    start = _place(content, dice)
    end = start + dice.randrange(1, 1 + dice.choice((4, 40, 400)))
    piece = dice.choice(
        (b"", 2 * content[start:end], dice.choice((2, 50)) * content[start:end], dice.randbytes(end - start))
    )
    return content[:start] + piece + content[end:]


def _crossed(content: bytes, dice: random.Random, other: bytes) -> bytes:
    """The beginning of one, and what follows somewhere in another."""
    return content[: _place(content, dice)] + other[_place(other, dice) :]


def _words(content: bytes, dice: random.Random, _: bytes) -> bytes:
    """Text that a message could carry to a terminal."""
    start = _place(content, dice)
    word = dice.choice((b"\x1b[31m\x1b]0;x\x07", b"\n\nError: x\n", b"[bold]x[/bold]", b"\xff\xfe%s%n", b"\0"))
    return content[:start] + word + content[start + len(word) :]


GENERAL = (_cut, _flipped, _flipped, _number, _number, _moved, _crossed, _words)


def _changed_png(content: bytes, dice: random.Random, other: bytes) -> bytes:
    """A chunk changed inside, left out, doubled or put elsewhere, its checksum right; or pixels decompressed first."""
    chunks = _chunks(content)
    at = dice.randrange(len(chunks))
    kind, data = chunks[at]
    way = dice.randrange(8)
    if _left_out_or_doubled(chunks, at, way, dice):
        return _png(chunks)
    if way == 2:
        kinds = (b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"zTXt",
                 b"iTXt", b"tEXt", b"acTL", b"fcTL", b"fdAT", b"pHYs")  # fmt: skip
        chunks.insert(at, (dice.choice(kinds), data or dice.randbytes(30)))
    elif way == 3 and kind == b"IDAT":
        rows = zlib.decompress(data)
        chunks[at] = kind, zlib.compress(dice.choice(GENERAL)(rows, dice, other))
    elif data:
        chunks[at] = kind, dice.choice(GENERAL)(data, dice, other)
    return _png(chunks)


def _left_out_or_doubled(chunks: list[tuple[bytes, bytes]], at: int, way: int, dice: random.Random) -> bool:
    """Do so with the chunk `at` if `way` is 0 or 1, and say whether it was."""
    if way == 0:
        del chunks[at]
    elif way == 1:
        chunks.insert(dice.randrange(len(chunks)), chunks[at])
    return way < 2


def _chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    """(kind, data) of each chunk of a PNG, whatever its checksum."""
    chunks, place = [], 8
    while place + 8 <= len(content):
        size = int.from_bytes(content[place : place + 4], "big")
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + size]))
        place += 12 + size
    return chunks


def _png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, data) for kind, data in chunks)


def _changed_jpeg(content: bytes, dice: random.Random, other: bytes) -> bytes:
    """A segment before the pixels changed inside, left out or doubled, its length right."""
    segments, place = [], 2
    while content[place : place + 1] == b"\xff" and content[place + 1] != 0xDA:
        size = int.from_bytes(content[place + 2 : place + 4], "big")
        segments.append((content[place : place + 2], content[place + 4 : place + 2 + size]))
        place += 2 + size
    at = dice.randrange(len(segments))
    marker, data = segments[at]
    way = dice.randrange(6)
    if way == 0:
        del segments[at]
    elif way == 1:
        segments[at:at] = dice.choice((1, 3, 150)) * [(marker, data)]
    elif way == 2:
        segments[at] = b"\xff" + bytes([dice.randrange(0xC0, 0xFF)]), data
    elif data:
        segments[at] = marker, dice.choice(GENERAL)(data, dice, other)[:65000]
    rest = content[place:]
    if dice.random() < 0.2:
        rest = dice.choice((2, 120)) * rest.removesuffix(b"\xff\xd9") + b"\xff\xd9"  # further scans
    return content[:2] + b"".join(m + (len(d) + 2).to_bytes(2, "big") + d for m, d in segments) + rest


def _changed_riff(content: bytes, dice: random.Random, other: bytes) -> bytes:
    """A chunk of a WEBP changed inside, its length and that of the whole right."""
    chunks, place = [], 12
    while place + 8 <= len(content):
        size = int.from_bytes(content[place + 4 : place + 8], "little")
        chunks.append((content[place : place + 4], content[place + 8 : place + 8 + size]))
        place += 8 + size + size % 2
    at = dice.randrange(len(chunks))
    kind, data = chunks[at]
    if not _left_out_or_doubled(chunks, at, dice.randrange(5), dice) and data:
        chunks[at] = kind, dice.choice(GENERAL)(data, dice, other)
    body = b"WEBP" + b"".join(k + len(d).to_bytes(4, "little") + d + b"\0" * (len(d) % 2) for k, d in chunks)
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def _changed_tiff(content: bytes, dice: random.Random, _: bytes) -> bytes:
    """Fields of one or two entries of the first directory: tag, type, count or value, to extremes or to another's."""
    order = "<" if content.startswith(b"I") else ">"
    is_big = struct.unpack_from(order + "H", content, 2)[0] == 43
    (place,) = struct.unpack_from(order + ("Q" if is_big else "I"), content, 8 if is_big else 4)
    (count,) = struct.unpack_from(order + ("Q" if is_big else "H"), content, place)
    start, size, word = (place + 8, 20, "Q") if is_big else (place + 2, 12, "I")
    changed = bytearray(content)
    for _ in range(dice.choice((1, 1, 2, 3))):
        entry = start + size * dice.randrange(count)
        field = dice.randrange(5)
        extreme = dice.choice((*EXTREMES, len(content), dice.randrange(len(content))))
        if field == 0:
            tags = (254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 322, 323, 324, 325, 330, 338,
                    339, 347, 513, 529, 530, 700, 34665, 34853, 34675)  # fmt: skip
            struct.pack_into(order + "H", changed, entry, dice.choice(tags))
        elif field == 1:
            struct.pack_into(order + "H", changed, entry + 2, dice.randrange(20))
        elif field == 2:
            struct.pack_into(order + word, changed, entry + 4, extreme)
        elif field == 3 and dice.random() < 0.5:
            struct.pack_into(order + "H", changed, entry + size - struct.calcsize(word), extreme % 65536)
        else:
            struct.pack_into(order + word, changed, entry + size - struct.calcsize(word), extreme)
    return bytes(changed)


def _changed_zip(content: bytes, dice: random.Random, _: bytes) -> bytes:
    """A field of a header, of a table entry or of the end record, to an extreme."""
    marks = {b"PK\1\2": 46, b"PK\3\4": 30, b"PK\5\6": 22, b"PK\7\x08": 16, b"PK\6\6": 56}
    mark = dice.choice([mark for mark in marks if mark in content])
    places = [place for place in range(len(content) - 4) if content[place : place + 4] == mark]
    place = dice.choice(places) + 4 + dice.randrange((marks[mark] - 4) // 2) * 2
    size = dice.choice((2, 4, 4, 8))
    value = dice.choice((*EXTREMES, len(content), dice.randrange(len(content)), 12, 14, 93, 2**63, 2**64 - 1))
    return content[:place] + (value % (1 << 8 * size)).to_bytes(size, "little") + content[place + size :]


_BY_FORMAT: dict[str, Callable[[bytes, random.Random, bytes], bytes]] = {
    "png": _changed_png, "jpeg": _changed_jpeg, "webp": _changed_riff, "tiff": _changed_tiff, "zip": _changed_zip,
    "bmp": lambda content, dice, other: _number(content[:70], dice, other) + content[70:],
    "avif": lambda content, dice, other: _number(content[:400], dice, other) + content[400:],
    "jp2": lambda content, dice, other: _number(content[:200], dice, other) + content[200:],
    **dict.fromkeys(("gif", "ppm", "pgm", "pbm"), lambda content, dice, other: (
        dice.choice(GENERAL)(content[:30], dice, other) + content[30:])),
}  # fmt: skip


def hostile(seeds: dict[str, bytes], seed: int, number: int) -> tuple[str, bytes]:
    """The file of that number, and the name of what it was made of: the same whenever it is asked for."""
    dice = random.Random(f"{seed}:{number}")
    name = dice.choice(sorted(seeds))
    content, other = seeds[name], seeds[dice.choice(sorted(seeds))]
    if dice.random() < 0.6:
        content = _BY_FORMAT[name.partition("-")[0]](content, dice, other)
    if dice.random() < 0.5 or content == seeds[name]:
        content = dice.choice(GENERAL)(content or b"\0", dice, other)
        if name.startswith("png") and dice.random() < 0.7:
            content = _png(_chunks(content))
    return name, content
