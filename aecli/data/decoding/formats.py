"""What kind of file its first bytes say that it is: a format that is read, or one that is named when refused."""

from io import BytesIO

from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Image import Image
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from aecli.data.decoding.pillow_calls import ImageError, call_pillow
from aecli.data.decoding.tiff import TiffStructure, explain_unreadable

# Pillow's readers are called by class: `Image.open` would print its own warning about large images, and would open a
# JPEG of several pictures as MPO.
_READERS: tuple[tuple[bytes, type[ImageFile]], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"\xff\xd8\xff", JpegImageFile),
    (b"BM", BmpImageFile),
    (b"II*\x00", TiffImageFile),
    (b"MM\x00*", TiffImageFile),
    (b"II+\x00", TiffImageFile),  # big-endian BigTIFF Pillow reads as something else
    (b"GIF87a", GifImageFile),
    (b"GIF89a", GifImageFile),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", Jpeg2KImageFile),
    (b"\xff\x4f\xff\x51", Jpeg2KImageFile),
    *((b"P" + digit, PpmImageFile) for digit in (b"1", b"2", b"3", b"4", b"5", b"6")),
)

# First bytes of what is no picture, or one that is not read, and a way out.
_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a git-lfs pointer, not the image itself: run git lfs pull"),
    (b"<!doctype html", "an HTML page: download the image again"),
    (b"<html", "an HTML page: download the image again"),
    (b"<svg", "an SVG drawing: save it as PNG"),
    (b"<?xml", "an XML file (SVG?): save it as PNG"),
    (b"%pdf", "a PDF document: save its pages as PNG"),
    (b"8bps", "a Photoshop file: save it as PNG or TIFF"),
    (b"\xff\x0a", "a JPEG XL image: save it as PNG"),
    (b"\x00\x00\x00\x0cjxl ", "a JPEG XL image: save it as PNG"),
    (b"\x93numpy", "a NumPy array: save it as PNG, or pass it to aecli's Python functions"),
    (b"\x76\x2f\x31\x01", "an OpenEXR image: save it as 8- or 16-bit PNG"),
    (b"#?radiance", "a Radiance HDR image: save it as 8- or 16-bit PNG"),
    (b"\x00\x00\x01\x00", "an icon: save it as PNG"),
    (b"pk\x03\x04", "a zip file: unpack it, or name it as a .zip"),
    (b"mm\x00+", "a big-endian BigTIFF: save it as TIFF or PNG"),
    (b"pf", "a floating-point map (PFM): save it as 16-bit PNG"),
    (b"p7", "a PAM image: save it as PNG"),
    (b"\x1a\x45\xdf\xa3", "a video: extract its frames as PNG"),
)
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_HEIF = "an HEIC image: save it as PNG or JPEG (magick IN.heic OUT.png)"
FORMATS = "PNG, JPEG, WEBP, AVIF, GIF, BMP, TIFF, JPEG 2000 or PPM"


def reader_of(source: bytes) -> type[ImageFile] | None:
    """Return the Pillow class that reads files which begin like `source`, or None."""
    if source[:4] == b"RIFF" and source[8:12] == b"WEBP":
        return WebPImageFile
    if source[4:8] == b"ftyp":
        return AvifImageFile if _is_avif(source) else None
    return next((reader for start, reader in _READERS if source.startswith(start)), None)


def describe(source: bytes) -> str:
    """Say what a file that is not read is, and what to do with it."""
    if not source:
        return "empty file"
    if source[4:8] == b"ftyp":
        return _HEIF if source[8:12] in _HEIF_BRANDS else "a video: extract its frames as PNG"
    start = source[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    found = next((text for magic, text in _FOREIGN if start.startswith(magic) or source.startswith(magic)), None)
    return found or f"not a {FORMATS} image"


def read_header(source: bytes) -> ImageFile:
    """Open an encoded image, without its pixels; raises ImageError."""
    reader = reader_of(source)
    if reader is None:
        raise ImageError(describe(source))
    try:
        return call_pillow(reader, BytesIO(source), "")
    except ImageError as error:
        if reader is TiffImageFile and (reason := explain_unreadable(source, str(error))):
            raise ImageError(reason) from error
        raise


def count_frames(opened: Image, source: bytes) -> int:
    """Return the number of frames or pages; 0 for several that can't be counted from the header."""
    if isinstance(opened, TiffImageFile):
        return max(1, TiffStructure(source).pages())
    try:
        if isinstance(opened, GifImageFile):  # counting would walk through the whole file
            return 0 if call_pillow(getattr, opened, "is_animated") else 1
        return int(call_pillow(getattr, opened, "n_frames", 1))
    except ImageError:  # of a later frame: the first one may be whole
        return 0


def has_deep_colour(opened: Image, source: bytes) -> bool:
    """Whether an AVIF has 10 or 12 bits a sample, which Pillow rounds to 8 (AV1-ISOBMFF, high_bitdepth)."""
    if not isinstance(opened, AvifImageFile):
        return False
    at = source.find(b"av1C")
    return 0 <= at < len(source) - 6 and bool(source[at + 6] & 0x40)


def _is_avif(source: bytes) -> bool:
    """Whether the brands of an ISO media file name AVIF: the major one, or a compatible one."""
    size = min(int.from_bytes(source[:4], "big"), 256)
    brands = [source[at : at + 4] for at in (8, *range(16, size, 4))]
    return any(brand in (b"avif", b"avis") for brand in brands)
