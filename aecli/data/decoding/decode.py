"""An encoded image becomes RGB pixels, whatever its format, depth, orientation or transparency."""

import ctypes
import hashlib
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, _imaging
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from aecli.configs.checks import RANDOM_CROP
from aecli.data.decoding.colour import Colour, to_rgb, wide_to_rgb, wide_values
from aecli.data.decoding.conversions import Conversion, Decoded, as_kinds, is_srgb
from aecli.data.decoding.formats import count_frames, has_deep_colour, read_header
from aecli.data.decoding.limits import (
    EXIF_LIMIT,
    PIXEL_LIMIT,
    MemoryBudget,
    bands,
    check_size,
    check_structure,
    check_tiles,
)
from aecli.data.decoding.pillow_calls import DAMAGE, ImageError, call_pillow, first_line
from aecli.data.decoding.wide import Wide, grey_samples, load_wide
from aecli.data.image_ref import FILE_LIMIT, ImageRef
from aecli.errors import DataError, single_line

Pixels = NDArray[np.uint8]

WHITE: Colour = (255, 255, 255)

# All decoding threads together hold no more encoded bytes, and no more pixels, than one image may have.
_FILE_BYTES, _PIXELS = MemoryBudget(FILE_LIMIT), MemoryBudget(PIXEL_LIMIT)

_WHOLE_SHORT_SIDE = 1024

# Where a PNG can hold an orientation, also after its pixels.
_PNG_ORIENTATION_CHUNKS = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
_EXIF_KEYS = ("exif", "Raw profile type exif")  # of Pillow's `info`

# EXIF orientation -> the transposition that applies it (EXIF 2.3, tag 0x0112); 1 needs none.
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
        """Build the message from both."""
        super().__init__(f"{single_line(name)}: {reason}")
        self.name = name
        self.reason = reason


def decode(image: ImageRef, background: Colour = WHITE, full_depth: bool = False) -> Decoded:
    """Decode to RGB (H, W, 3), uint8, and say what was converted.

    EXIF orientation is applied, transparency composited over the background, the first frame taken of several. Samples
    of 16 bits (also grey as 32-bit integers from 0 to 65535, and as floats from 0 to 1) are divided by 257 and rounded;
    at full depth they are kept, as uint16 or float32 from 0 to 65535. Colour profiles are not applied.

    Raises:
        DecodeError: the image is damaged, truncated, too large, of another format, or of an unsupported value range.
    """
    return _decoded(image, background, full_depth, _as_array)


def image_size(image: ImageRef) -> tuple[int, int]:
    """(H, W) in pixels with EXIF orientation applied, from the header where that suffices.

    Raises:
        DecodeError: the header is damaged, or the image too large or of another format.
    """
    with _as_decode_error(image), ExitStack() as reserved:
        return _upright_size(*_open(image, reserved))


def _upright_size(opened: Image.Image, source: bytes | Image.Image) -> tuple[int, int]:
    if isinstance(opened, PngImageFile):
        if isinstance(source, bytes) and not any(chunk in source for chunk in _PNG_ORIENTATION_CHUNKS):
            return opened.height, opened.width
        call_pillow(opened.load)  # chunks may follow the pixels
    orientation = _orientation(opened)
    if orientation in _SIDES_SWAPPED and isinstance(opened, TiffImageFile):
        # Pillow rotates TIFFs itself while loading them; the size that it states before differs between releases.
        call_pillow(opened.load)
        orientation = _orientation(opened)
    width, height = opened.size
    return (width, height) if orientation in _SIDES_SWAPPED else (height, width)


def resize(pixels: Pixels, height: int, width: int, method: Literal["bilinear", "bicubic"] = "bilinear") -> Pixels:
    """Resize uint8 (H, W, 3) to (height, width, 3), antialiased, as torchvision's Resize does with a Pillow image."""
    if pixels.shape[:2] == (height, width):
        return pixels
    resampling = Image.Resampling.BILINEAR if method == "bilinear" else Image.Resampling.BICUBIC
    return np.array(Image.fromarray(pixels).resize((width, height), resampling))


def fit(pixels: Pixels, size: int, how: str) -> Pixels:
    """Bring uint8 (H, W, 3) to (size, size, 3).

    `squash` resizes both sides at once; `crop` resizes the short side to `size`, then crops the centre (torchvision's
    Resize(size) and CenterCrop(size)).

    Raises:
        DataError: a crop of an image so elongated that resized it would have more than `PIXEL_LIMIT` pixels.
    """
    try:
        return np.array(_fit(Image.fromarray(pixels), size, how))
    except ImageError as error:
        raise DataError(str(error)) from error


def decode_fitted(image: ImageRef, size: int, how: str, background: Colour = WHITE) -> Decoded:
    """Decode, and bring to (size, size, 3), uint8, contiguous; see `decode` and `fit`.

    `random-crop` keeps the picture whole, (H, W, 3), reduced to `whole_size` where it is very large.

    Raises:
        DecodeError: the image can't be decoded, or is too elongated to be cropped.
    """

    def finish(picture: Image.Image | NDArray[Any]) -> NDArray[Any]:
        assert isinstance(picture, Image.Image)  # for the type checker: an array at full depth alone
        return np.array(_fit(picture, size, how))

    return _decoded(image, background, full_depth=False, finish=finish)


@contextmanager
def _as_decode_error(image: ImageRef) -> Iterator[None]:
    try:
        yield
    except ImageError as error:
        raise DecodeError(image.name, str(error)) from error
    except MemoryError as error:
        raise DecodeError(image.name, "not enough memory") from error


def _decoded(
    image: ImageRef,
    background: Colour,
    full_depth: bool,
    finish: Callable[[Image.Image | NDArray[Any]], NDArray[Any]],
) -> Decoded:
    """Decode, and return what `finish` makes of the picture, while the memory for it is reserved."""
    with _as_decode_error(image), ExitStack() as reserved:
        opened, source = _open(image, reserved)
        # Pillow turns TIFFs itself while loading them.
        before = _orientation(opened) if isinstance(opened, TiffImageFile) else 1
        frames, is_deep = 1, False
        if isinstance(source, bytes):
            frames, is_deep = count_frames(opened, source), has_deep_colour(opened, source)
        wide = _load(opened, source)
        del source  # the encoded bytes: large images are copied below
        orientation = _orientation(opened)
        upright = _UPRIGHT.get(orientation)
        rgb: Image.Image | NDArray[Any]
        peak = 0
        if wide is None:
            rgb, kinds = to_rgb(opened if upright is None else opened.transpose(upright), background)
        else:
            rgb, kinds, peak = wide_values(wide, background) if full_depth else wide_to_rgb(wide, background)
            rgb = rgb if upright is None else _transposed(rgb, upright)
        profile = opened.info.get("icc_profile")
        is_other = isinstance(profile, bytes) and profile and not is_srgb(profile)
        other_profile = hashlib.sha256(profile or b"").hexdigest() if is_other else ""
        kinds |= as_kinds({
            Conversion.ORIENTATION: before in _UPRIGHT or upright is not None,
            Conversion.FRAMES: frames != 1,
            Conversion.DEPTH: is_deep or wide is not None,
            Conversion.PROFILE: other_profile,
        })  # fmt: skip
        del opened, wide  # `finish` copies the picture once more
        return Decoded(finish(rgb), kinds, frames, peak, other_profile)


def _as_array(picture: Image.Image | NDArray[Any]) -> NDArray[Any]:
    """Return the picture's pixels, copied in bands: NumPy copies a whole picture twice."""
    if not isinstance(picture, Image.Image):
        return np.ascontiguousarray(picture)
    width, height = picture.size
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    for rows in bands(height, width):
        whole = rows == slice(0, height)
        pixels[rows] = np.asarray(picture if whole else picture.crop((0, rows.start, width, rows.stop)))
    return pixels


def _load(opened: Image.Image, source: bytes | Image.Image) -> Wide | None:
    if isinstance(opened, ImageFile) and isinstance(source, bytes):
        return load_wide(opened, source, lambda: read_header(source))
    call_pillow(opened.load)
    return grey_samples(opened) if opened.mode.startswith(("I", "F")) else None


_ARRAY_TRANSPOSE: dict[Image.Transpose, Callable[[NDArray[Any]], NDArray[Any]]] = {
    Image.Transpose.FLIP_LEFT_RIGHT: lambda a: a[:, ::-1],
    Image.Transpose.ROTATE_180: lambda a: a[::-1, ::-1],
    Image.Transpose.FLIP_TOP_BOTTOM: lambda a: a[::-1],
    Image.Transpose.TRANSPOSE: lambda a: a.swapaxes(0, 1),
    Image.Transpose.ROTATE_270: lambda a: np.rot90(a, 3),
    Image.Transpose.TRANSVERSE: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    Image.Transpose.ROTATE_90: lambda a: np.rot90(a, 1),
}


def _transposed(picture: Image.Image | NDArray[Any], upright: Image.Transpose) -> Image.Image | NDArray[Any]:
    return picture.transpose(upright) if isinstance(picture, Image.Image) else _ARRAY_TRANSPOSE[upright](picture)


def whole_limit(size: int) -> int:
    """The short side, in pixels, to which larger pictures are reduced before pieces of `size` are taken of them."""
    return max(_WHOLE_SHORT_SIDE, 2 * size)


def whole_size(height: int, width: int, size: int) -> tuple[int, int]:
    """(H, W) of a picture that pieces of `size` are taken of: its own, or less where it is very large.

    The short side is at most `whole_limit`, and there are at most four times as many pixels as in its square.
    """
    limit = whole_limit(size)
    scale = min(limit / min(height, width), 2 * limit / math.sqrt(height * width))
    return (height, width) if scale >= 1 else (max(1, round(height * scale)), max(1, round(width * scale)))


def _fit(picture: Image.Image, size: int, how: str) -> Image.Image:
    """`fit` without the conversion to an array and back, which takes as long as resizing; raises ImageError."""
    if how == RANDOM_CROP:
        height, width = whole_size(picture.height, picture.width, size)
        is_reduced = (width, height) != picture.size
        return picture.resize((width, height), Image.Resampling.BILINEAR) if is_reduced else picture
    if how == "squash":
        return picture.resize((size, size), Image.Resampling.BILINEAR)
    width, height = picture.size
    short = min(height, width)
    if size * (size * max(height, width) // short) > PIXEL_LIMIT:
        raise ImageError(f"{width}x{height} is too elongated to be cropped to {size}x{size}")
    picture = picture.resize((size * width // short, size * height // short), Image.Resampling.BILINEAR)
    left, top = round((picture.width - size) / 2), round((picture.height - size) / 2)
    return picture.crop((left, top, left + size, top + size))


def _open(image: ImageRef, reserved: ExitStack) -> tuple[Image.Image, bytes | Image.Image]:
    """(the image with its header read but not its pixels, what it was read from); `reserved` then holds both."""
    reserved.enter_context(_FILE_BYTES.reserve(image.encoded_bytes))
    try:
        source = image.load()
    except OSError as error:
        raise ImageError(first_line(error)) from error
    if isinstance(source, Image.Image):
        opened = source
    else:
        check_structure(source)
        _set_up_pillow()
        opened = read_header(source)
    check_size(*opened.size)
    if isinstance(opened, ImageFile):
        check_tiles(opened)
    reserved.enter_context(_PIXELS.reserve(opened.width * opened.height))
    return opened, source


@cache
def _set_up_pillow() -> None:
    """Set Pillow's pixel limit to ours, and keep what it logs and prints about damaged files off standard error."""
    Image.MAX_IMAGE_PIXELS = PIXEL_LIMIT  # the WEBP and TIFF readers apply it, and refuse at twice as much
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    try:  # libtiff prints errors that Pillow then raises; where the symbol isn't exported, it goes on doing so
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)
    except (OSError, AttributeError):
        pass


def _orientation(opened: Image.Image) -> int:
    if any(len(opened.info.get(key, "")) > EXIF_LIMIT for key in _EXIF_KEYS):
        raise ImageError(f"more than {EXIF_LIMIT} bytes of EXIF")
    try:
        orientation = opened.getexif().get(_ORIENTATION_TAG)
    except (*DAMAGE, MemoryError):  # damaged metadata doesn't make the pixels unreadable
        return 1
    return orientation if isinstance(orientation, int) else 1
