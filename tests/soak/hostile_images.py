"""Image files and zips made hostile: small ones of every format and kind, and changes that decoders get far into."""

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, PngImagePlugin

from tests.support.images import encoded, hand_made_png, picture

EXTREMES = (0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**24, 2**28, 2**31 - 1, 2**31, 2**32 - 1)


# Seeds: name -> bytes


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _interlaced_png(pixels: np.ndarray) -> bytes:
    """Adam7 (PNG specification, section 8.2), which Pillow reads and doesn't write."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    parts = [pixels[top::down, left::right] for top, left, down, right in passes]
    rows = b"".join(b"\0" + row.tobytes() for part in parts if part.size for row in part)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 1)
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


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


def image_seeds() -> dict[str, bytes]:
    """A file of every kind that decodes: formats, colours, depths, codings, notes beside the picture."""
    rgb, small = picture(20, 28), picture(8, 8)
    image = Image.fromarray(rgb)
    rgba = Image.fromarray(np.dstack([rgb, picture(20, 28, 5)[:, :, 0]]))
    wide = Image.fromarray(rgb[:, :, 0].astype(np.uint16) * 257)
    bits = Image.fromarray(rgb[:, :, 0] > 100)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "a maker", 72.0
    exif.get_ifd(0x8769)[0x9286] = b"a comment"
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Title", "text")
    notes.add_text("Author", "compressed", zip=True)
    notes.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="3"/>', zip=True)
    icc = random.Random(0).randbytes(600)
    other = Image.fromarray(picture(20, 28, 9))
    png: dict[str, tuple[Image.Image, dict[str, object]]] = {
        "rgb": (image, {}), "grey": (image.convert("L"), {}), "bits": (bits, {}), "la": (rgba.convert("LA"), {}),
        "rgba": (rgba, {"exif": exif}), "wide": (wide, {}), "notes": (image, {"pnginfo": notes, "icc_profile": icc}),
        "palette": (image.quantize(9), {"transparency": bytes(range(0, 90, 10))}),
        "animated": (image, {"save_all": True, "append_images": [other]}),
    }  # fmt: skip
    seeds = {f"png-{name}": encoded(each, "PNG", **options) for name, (each, options) in png.items()}
    seeds["png-interlaced"] = _interlaced_png(rgb)
    samples = (rgb[:8, :8].astype(">u2") * 257).tobytes()
    seeds["png-wide-rgb"] = hand_made_png(8, 8, 16, 2, [samples[row * 48 :][:48] for row in range(8)])
    jpeg: dict[str, tuple[Image.Image, dict[str, object]]] = {
        "plain": (image, {}), "progressive": (image, {"progressive": True, "exif": exif}),
        "grey": (bits.convert("L"), {}),
        "cmyk": (image.convert("CMYK"), {"subsampling": 0}), "restarts": (image, {"restart_marker_blocks": 1}),
        "icc": (image, {"icc_profile": icc, "comment": b"a comment", "xmp": b"<x/>"}),
    }  # fmt: skip
    seeds |= {f"jpeg-{name}": encoded(each, "JPEG", **options) for name, (each, options) in jpeg.items()}
    webp: dict[str, tuple[Image.Image, dict[str, object]]] = {
        "lossy": (image, {}), "lossless": (image, {"lossless": True}), "alpha": (rgba, {"exif": exif}),
        "animated": (image, {"save_all": True, "append_images": [other], "icc_profile": icc}),
    }  # fmt: skip
    seeds |= {f"webp-{name}": encoded(each, "WEBP", **options) for name, (each, options) in webp.items()}
    seeds |= {
        "gif": encoded(image.quantize(9), "GIF"), "gif-clear": encoded(image.quantize(9), "GIF", transparency=3),
        "gif-animated": encoded(image, "GIF", save_all=True, append_images=[other]),
        "avif": encoded(image, "AVIF", exif=exif), "avif-alpha": encoded(rgba, "AVIF", icc_profile=icc),
        "avif-animated": encoded(image, "AVIF", save_all=True, append_images=[other]),
        "jp2": encoded(image, "JPEG2000"), "jp2-alpha": encoded(rgba, "JPEG2000"),
        "jp2-tiles": encoded(image, "JPEG2000", tile_size=(8, 8), no_jp2=True),
        "jp2-wide": encoded(wide, "JPEG2000"), "ppm": encoded(image, "PPM"), "pgm": encoded(image.convert("L"), "PPM"),
        "pgm-wide": encoded(wide, "PPM"), "ppm-wide": b"P6 8 8 65535\n" + samples, "ppm-dim": b"P6 8 8 99\n" + samples,
        "ppm-text": b"P3 4 4 255\n" + b"1 20 255 " * 16, "pbm-text": b"P1 4 4\n" + b"0 1 " * 8,
        "png-wide-la": hand_made_png(8, 8, 16, 4, [samples[row * 32 :][:32] for row in range(8)]),
        "png-wide-rgba": hand_made_png(6, 6, 16, 6, [samples[row * 48 :][:48] for row in range(6)]),
    }  # fmt: skip
    for order in "<>":
        wide_rgb = (rgb[:8, :8].astype(order + "u2") * 257).tobytes()
        tags = {"t258": [16] * 3, "t262": 2, "t277": 3, "t278": 8, "t279": 384}
        seeds[f"tiff-wide-rgb{order}"] = tiff(tiff_tags(8, 8, order, t273=8, **tags), wide_rgb, order)
        planes = {"t258": [16] * 3, "t262": 2, "t277": 3, "t278": 8, "t279": [128] * 3, "t284": 2}
        seeds[f"tiff-planes{order}"] = tiff(tiff_tags(8, 8, order, t273=[8, 136, 264], **planes), wide_rgb, order)
        seeds[f"tiff-white{order}"] = tiff(tiff_tags(8, 8, order, t273=8, t258=16, t262=0, t278=8), wide_rgb, order)
    seeds |= {f"bmp-{mode}": encoded(image.convert(mode), "BMP") for mode in ("RGB", "L", "P", "RGBA", "1")}
    seeds["bmp-rle8"] = bmp(8, 1, b"".join(b"\x04\x05\0\x04\1\2\3\4\0\0" for _ in range(8)) + b"\0\1")
    seeds["bmp-rle4"] = bmp(4, 2, b"".join(b"\x04\x25\0\x04\x12\x34\0\0" for _ in range(7)) + b"\0\2\1\0\x08\x11\0\1")
    seeds["bmp-fields"] = bmp(16, 3, small.tobytes()[:128])
    seeds["bmp-core"] = bmp(8, 0, small.tobytes()[:64], header=12)
    codings = ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "lzma", "zstd"]
    seeds |= {f"tiff-{coding}": encoded(image, "TIFF", compression=coding) for coding in codings}
    seeds |= {
        f"tiff-{coding}": encoded(bits, "TIFF", compression=coding) for coding in ("tiff_ccitt", "group3", "group4")
    }
    seeds["tiff-rgba"] = encoded(rgba, "TIFF", exif=exif, icc_profile=icc)
    seeds["tiff-big"] = encoded(image, "TIFF", big_tiff=True, compression="tiff_lzw")
    seeds["tiff-wide"] = encoded(wide, "TIFF", compression="tiff_deflate")
    seeds["tiff-float"] = encoded(Image.fromarray(rgb[:, :, 0].astype(np.float32) / 255), "TIFF")
    seeds["tiff-cmyk"] = encoded(image.convert("CMYK"), "TIFF")
    seeds["tiff-palette"] = encoded(image.quantize(9), "TIFF")
    seeds["tiff-pages"] = encoded(image, "TIFF", save_all=True, append_images=[other])
    grey = rgb[:16, :16, 0]
    for order in "<>":
        strips = tiff_tags(16, 16, order, t273=[8, 136], t278=8, t279=[128, 128])
        seeds[f"tiff-strips{order}"] = tiff(strips, grey.tobytes(), order)
    seeds["tiff-big-raw"] = tiff(tiff_tags(16, 16, t273=16, t278=16, t279=256), grey.tobytes(), is_big=True)
    tile = zlib.compress(grey.tobytes())
    tiles = tiff_tags(20, 16, t259=8, t322=16, t323=16, t324=[8, 8], t325=[len(tile)] * 2)
    seeds["tiff-tiles"] = tiff(tiles, tile)
    return seeds


def zip_seeds() -> dict[str, bytes]:
    """Zips of three images: stored, deflated, streamed, of 64-bit sizes, with notes."""
    seeds = {}
    for name, method, streamed, is_wide in (
        ("stored", 0, False, False), ("deflated", 8, False, False),
        ("streamed", 8, True, False), ("wide", 8, False, True),
    ):  # fmt: skip
        file = io.BytesIO()
        target = _Unseekable(file) if streamed else file
        with zipfile.ZipFile(target, "w", method) as archive:
            for place, inside in enumerate(("photos/a.png", "photos/ü/b.png", "photos/c.jpg")):
                with archive.open(inside, "w", force_zip64=is_wide) as member:
                    member.write(encoded(picture(8, 9, place)))
            archive.comment = b"a comment"
        seeds[f"zip-{name}"] = file.getvalue()
    return seeds


class _Unseekable(io.RawIOBase):
    """A pipe: members get their sizes behind their data."""

    def __init__(self, file: io.BytesIO) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        return self._file.write(data)


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
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


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
