"""An encoded image becomes 8-bit RGB pixels, whatever its format, depth, orientation or transparency."""

import ctypes
import logging
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from io import BytesIO
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, _imaging
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from aecli.data.decoding.colour import to_rgb
from aecli.data.decoding.limits import EXIF_LIMIT, PIXEL_LIMIT, MemoryBudget, check_size, check_structure, check_tiles
from aecli.data.image_ref import FILE_LIMIT, ImageRef
from aecli.errors import DataError, single_line

Pixels = NDArray[np.uint8]

# However many threads decode, the files that they hold are together no larger than one may be, and the pictures too.
_FILES, _PICTURES = MemoryBudget(FILE_LIMIT), MemoryBudget(PIXEL_LIMIT)

# By the first bytes, not by the suffix. Pillow's readers are called by class: `Image.open` would print its own warning
# about large images, and would take a JPEG of several pictures for another format.
_READERS: tuple[tuple[bytes, type[ImageFile]], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"\xff\xd8\xff", JpegImageFile),
    (b"RIFF", WebPImageFile),
    (b"BM", BmpImageFile),
    (b"II*\x00", TiffImageFile),
    (b"MM\x00*", TiffImageFile),
    (b"II+\x00", TiffImageFile),  # Pillow takes the BigTIFF of the other byte order for something else
)

# What Pillow and zipfile raise for damaged contents, and what comes out of Pillow's readers when a damaged header or
# tag has a type or value that they did not expect.
_UNEXPECTED = (struct.error, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError)
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    MemoryError,
    RuntimeError,
    Image.DecompressionBombError,
    zlib.error,
    zipfile.BadZipFile,
    *_UNEXPECTED,
)

# Where a PNG can hold an orientation, also behind its pixels.
_PNG_NOTES = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
_EXIF = ("exif", "Raw profile type exif")  # what Pillow calls it

# EXIF orientation -> what puts the picture upright (EXIF 2.3, tag 0x0112). 1 is upright.
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDES_SWAPPED = (5, 6, 7, 8)


class DecodeError(DataError):
    """An image that can't be decoded: `name` is its name in the source, `reason` says why, in one line."""

    def __init__(self, name: str, reason: str) -> None:
        """Make the message from both."""
        super().__init__(f"{single_line(name)}: {reason}")
        self.name = name
        self.reason = reason


def decode(image: ImageRef) -> Pixels:
    """Decode to uint8 (H, W, 3) RGB.

    EXIF orientation is applied, transparency laid over white, the first frame taken of several. Grey of 16 bits (also
    as 32-bit integers from 0 to 65535) is divided by 257 and rounded; floating-point pixels must lie in [0, 1].

    Raises:
        DecodeError: the image is damaged, cut short, too large, of another format, or its values have no meaning here.

    """
    return _decoded(image, np.array)


def image_size(image: ImageRef) -> tuple[int, int]:
    """(H, W) in pixels once upright, from the header where that says it.

    Raises:
        DecodeError: the header is damaged, or the image too large or of another format.

    """
    try:
        with ExitStack() as room:
            opened, source = _open(image, room)
            if isinstance(opened, PngImageFile):
                if isinstance(source, bytes) and not any(note in source for note in _PNG_NOTES):
                    return opened.height, opened.width
                opened.load()  # there may be notes behind the pixels
            orientation = _orientation(opened)
            if orientation in _SIDES_SWAPPED and isinstance(opened, TiffImageFile):
                # Pillow turns TIFFs itself while loading them; which size it states before differs between releases.
                opened.load()
                orientation = _orientation(opened)
            width, height = opened.size
    except _DAMAGE as error:
        raise DecodeError(image.name, _reason(error)) from error
    return (width, height) if orientation in _SIDES_SWAPPED else (height, width)


def resize(pixels: Pixels, height: int, width: int, method: Literal["bilinear", "bicubic"] = "bilinear") -> Pixels:
    """Resize uint8 (H, W, 3) to (height, width, 3), antialiased: what torchvision's Resize does to a Pillow image."""
    if pixels.shape[:2] == (height, width):
        return pixels
    resampling = Image.Resampling.BILINEAR if method == "bilinear" else Image.Resampling.BICUBIC
    return np.array(Image.fromarray(pixels).resize((width, height), resampling))


def fit(pixels: Pixels, size: int, how: str) -> Pixels:
    """Bring uint8 (H, W, 3) to (size, size, 3).

    `squash` resizes both sides at once; `crop` the short side to `size`, then keeps the middle (torchvision's
    Resize(size) and CenterCrop(size)).

    Raises:
        DataError: a crop of a picture so elongated that its long side would grow beyond `PIXEL_LIMIT` pixels in all.

    """
    try:
        return np.array(_fit(Image.fromarray(pixels), size, how))
    except ValueError as error:
        raise DataError(str(error)) from error


def decode_fitted(image: ImageRef, size: int, how: str) -> Pixels:
    """Decode, and bring to (size, size, 3), contiguous; see `decode` and `fit`.

    Raises:
        DecodeError: the image can't be decoded, or is too elongated to be cropped.

    """
    return _decoded(image, lambda picture: np.array(_fit(picture, size, how)))


def _decoded(image: ImageRef, finish: Callable[[Image.Image], Pixels]) -> Pixels:
    """What `finish` makes of the image as `decode` describes it, of mode RGB, while there is room for it."""
    try:
        with ExitStack() as room:
            return finish(_picture(image, room))
    except _DAMAGE as error:
        raise DecodeError(image.name, _reason(error)) from error


def _picture(image: ImageRef, room: ExitStack) -> Image.Image:
    opened, _ = _open(image, room)
    opened.load()
    upright = _UPRIGHT.get(_orientation(opened))
    return to_rgb(opened if upright is None else opened.transpose(upright))


def _fit(picture: Image.Image, size: int, how: str) -> Image.Image:
    """`fit` without the way through an array and back, which takes as long as resizing does; raises ValueError."""
    if how == "squash":
        return picture.resize((size, size), Image.Resampling.BILINEAR)
    width, height = picture.size
    short = min(height, width)
    if size * (size * max(height, width) // short) > PIXEL_LIMIT:
        raise ValueError(f"{width}x{height} is too elongated to be cropped to {size}x{size}")
    picture = picture.resize((size * width // short, size * height // short), Image.Resampling.BILINEAR)
    left, top = round((picture.width - size) / 2), round((picture.height - size) / 2)
    return picture.crop((left, top, left + size, top + size))


def _open(image: ImageRef, room: ExitStack) -> tuple[Image.Image, bytes | Image.Image]:
    """The image with its header read, pixels not yet, and what it was read from; `room` then holds room for both."""
    room.enter_context(_FILES.reserve(image.encoded_bytes))
    source = image.load()
    if isinstance(source, Image.Image):
        opened = source
    else:
        check_structure(source)
        opened = _read_header(source)
    check_size(*opened.size)
    if isinstance(opened, ImageFile):
        check_tiles(opened)
    room.enter_context(_PICTURES.reserve(opened.width * opened.height))
    return opened, source


def _read_header(source: bytes) -> Image.Image:
    reader = next((reader for start, reader in _READERS if source.startswith(start)), None)
    if reader is None:
        raise ValueError("empty file" if not source else "not a PNG, JPEG, WEBP, BMP or TIFF image")
    _set_up_pillow()
    return reader(BytesIO(source), "")


@cache
def _set_up_pillow() -> None:
    """Have Pillow's limit of pixels be ours, and let nothing that it meets in a file be told on standard error."""
    Image.MAX_IMAGE_PIXELS = PIXEL_LIMIT  # its readers of WEBP and TIFF ask for it, and refuse at twice as much
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    try:  # libtiff prints errors that Pillow then raises; where it can't be reached, it goes on doing so
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)
    except (OSError, AttributeError):
        pass


def _orientation(opened: Image.Image) -> int:
    if any(len(opened.info.get(note, "")) > EXIF_LIMIT for note in _EXIF):
        raise ValueError(f"its EXIF notes are larger than {EXIF_LIMIT} bytes")
    try:
        orientation = opened.getexif().get(_ORIENTATION_TAG)
    except _DAMAGE:  # notes beside the picture: broken ones don't make it unreadable
        return 1
    return orientation if isinstance(orientation, int) else 1


def _reason(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "there is not enough memory for it"
    if isinstance(error, _UNEXPECTED):
        return f"its header is damaged ({single_line(str(error) or type(error).__name__)})"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return single_line(next(iter(text.splitlines()), "") or type(error).__name__)
