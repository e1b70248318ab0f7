"""An encoded image becomes 8-bit RGB pixels, whatever its format, depth, orientation or transparency."""

import os
import struct
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from itertools import islice
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from aecli.data.images import ImageRef
from aecli.errors import DataError

Pixels = NDArray[np.uint8]
Item = TypeVar("Item")
Result = TypeVar("Result")

PIXEL_LIMIT = 2**28  # above what a 200-megapixel camera gives; refused from the header, before memory is taken

# By the first bytes, not by the suffix. Pillow's readers are called by class: `Image.open` would print its own warning
# about large images, and would take a JPEG of several pictures for another format.
_READERS: tuple[tuple[bytes, type[ImageFile]], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"\xff\xd8\xff", JpegImageFile),
    (b"RIFF", WebPImageFile),
    (b"BM", BmpImageFile),
    (b"II*\x00", TiffImageFile),
    (b"MM\x00*", TiffImageFile),
    (b"II+\x00", TiffImageFile),
    (b"MM\x00+", TiffImageFile),
)

# What Pillow and zipfile raise for damaged contents; the last four come out of Pillow's readers when a damaged header
# or tag has a type or value that they did not expect.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    MemoryError,
    RuntimeError,
    Image.DecompressionBombError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
)

# Where a PNG can hold an orientation, also behind its pixels.
_PNG_NOTES = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")

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
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


def decode(image: ImageRef) -> Pixels:
    """Decode to uint8 (H, W, 3) RGB.

    EXIF orientation is applied, transparency laid over white, the first frame taken of several. Grey of 16 bits (also
    as 32-bit integers from 0 to 65535) is divided by 257 and rounded; floating-point pixels must lie in [0, 1].

    Raises:
        DecodeError: the image is damaged, cut short, too large, of another format, or its values have no meaning here.

    """
    return np.array(_picture(image))


def image_size(image: ImageRef) -> tuple[int, int]:
    """(H, W) in pixels once upright, from the header where that says it.

    Raises:
        DecodeError: the header is damaged, or the image too large or of another format.

    """
    try:
        source = image.load()
        opened = _open(image.name, source)
        if isinstance(source, bytes) and isinstance(opened, PngImageFile) and not any(n in source for n in _PNG_NOTES):
            return opened.height, opened.width  # Pillow would decode all pixels to look for notes behind them
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
    return np.array(_fit(Image.fromarray(pixels), size, how))


def decode_fitted(image: ImageRef, size: int, how: str) -> Pixels:
    """Decode, and bring to (size, size, 3), contiguous; see `decode` and `fit`.

    Raises:
        DecodeError: the image can't be decoded, or is too elongated to be cropped.

    """
    picture = _picture(image)
    try:
        return np.array(_fit(picture, size, how))
    except DataError as error:
        raise DecodeError(image.name, str(error)) from error


def worker_count(workers: int | None) -> int:
    """`workers`, or for None the number of CPUs that this process may use, at most 16."""
    if workers is not None:
        return workers
    if hasattr(os, "sched_getaffinity"):
        return min(16, len(os.sched_getaffinity(0)))
    return min(16, os.cpu_count() or 1)


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None, ahead: int | None = None
) -> Generator[Result, None, None]:
    """`map` in threads, results in the order of `items`.

    At most `ahead` items (default: two a worker) are begun or done but not yet taken. An error in `function` is raised
    where its result would come. Closing the generator cancels what has not begun and waits for what has.
    """
    count = worker_count(workers)
    waiting = iter(items)
    pool = ThreadPoolExecutor(count, thread_name_prefix="aecli-map")
    try:
        in_flight: deque[Future[Result]] = deque()
        in_flight.extend(pool.submit(function, item) for item in islice(waiting, ahead or 2 * count))
        while in_flight:
            result = in_flight.popleft().result()
            in_flight.extend(pool.submit(function, item) for item in islice(waiting, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _picture(image: ImageRef) -> Image.Image:
    """The image as `decode` describes it, of mode RGB, and with its errors."""
    try:
        opened = _open(image.name, image.load())
        opened.load()
        upright = _UPRIGHT.get(_orientation(opened))
        return _to_rgb(image.name, opened if upright is None else opened.transpose(upright))
    except _DAMAGE as error:
        raise DecodeError(image.name, _reason(error)) from error


def _fit(picture: Image.Image, size: int, how: str) -> Image.Image:
    """`fit` without the way through an array and back, which takes as long as resizing does."""
    if how == "squash":
        return picture.resize((size, size), Image.Resampling.BILINEAR)
    width, height = picture.size
    short = min(height, width)
    if size * (size * max(height, width) // short) > PIXEL_LIMIT:
        raise DataError(f"{width}x{height} is too elongated to be cropped to {size}x{size}")
    picture = picture.resize((size * width // short, size * height // short), Image.Resampling.BILINEAR)
    left, top = round((picture.width - size) / 2), round((picture.height - size) / 2)
    return picture.crop((left, top, left + size, top + size))


def _open(name: str, source: bytes | Image.Image) -> Image.Image:
    """The image with its header read, pixels not yet."""
    if isinstance(source, Image.Image):
        opened = source
    else:
        reader = next((reader for start, reader in _READERS if source.startswith(start)), None)
        if reader is None:
            raise DecodeError(name, "empty file" if not source else "not a PNG, JPEG, WEBP, BMP or TIFF image")
        opened = reader(BytesIO(source), "")
    width, height = opened.size
    if width < 1 or height < 1:
        raise DecodeError(name, f"it has no pixels ({width}x{height})")
    if width * height > PIXEL_LIMIT:
        raise DecodeError(name, f"{width}x{height} is more than {PIXEL_LIMIT} pixels")
    return opened


def _orientation(opened: Image.Image) -> int:
    try:
        orientation = opened.getexif().get(_ORIENTATION_TAG)
    except _DAMAGE:  # notes beside the picture: broken ones don't make it unreadable
        return 1
    return orientation if isinstance(orientation, int) else 1


def _to_rgb(name: str, opened: Image.Image) -> Image.Image:
    if opened.mode.startswith("I"):
        return _wide_integers(name, opened)
    if opened.mode == "F":
        return _unit_floats(name, opened)
    if opened.has_transparency_data:
        opened = opened.convert("RGBA")
        opened = Image.alpha_composite(Image.new("RGBA", opened.size, "white"), opened)
    return opened if opened.mode == "RGB" else opened.convert("RGB")


def _wide_integers(name: str, opened: Image.Image) -> Image.Image:
    values = np.asarray(opened).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise DecodeError(name, "its pixels are 32-bit integers beyond 0 to 65535: save it with 8 or 16 bits")
    if isinstance(transparent := opened.info.get("transparency"), int):
        values[values == transparent] = 65535
    return _grey((values + 128) // 257)


def _unit_floats(name: str, opened: Image.Image) -> Image.Image:
    values = np.asarray(opened)
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise DecodeError(name, "its pixels are floating-point numbers beyond [0, 1]: save it with 8 or 16 bits")
    return _grey(np.rint(values * 255))


def _grey(values: NDArray[np.generic]) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).splitlines()
    return lines[0] if lines and lines[0] else type(error).__name__
