"""Small images of every format and kind that decodes, and zips of them: name -> bytes."""

import io
import random
import struct
import zipfile
import zlib

import numpy as np
from PIL import Image, PngImagePlugin

from tests.support.images import encoded, picture
from tests.support.raw_images import bmp, hand_made_png, png_chunk, tiff, tiff_tags


def _interlaced_png(pixels: np.ndarray) -> bytes:
    """Adam7 (PNG specification, section 8.2), which Pillow reads and doesn't write."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    parts = [pixels[top::down, left::right] for top, left, down, right in passes]
    rows = b"".join(b"\0" + row.tobytes() for part in parts if part.size for row in part)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 1)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


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
