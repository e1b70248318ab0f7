"""Images of more than 8 bits a sample, exactly: Pillow itself keeps only the high bytes of 16-bit colour.

Its unpackers take the first byte of each sample, the high one in the byte order that is named. So colour is loaded
a second time with the other byte order named, which gives the low bytes.
"""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile

from aecli.data.decoding.limits import bands
from aecli.data.decoding.pillow_calls import ImageError, call_pillow
from aecli.data.decoding.tiff import BITS, FLOAT, PHOTOMETRIC, PLANAR, SAMPLE_FORMAT, SAMPLES, SIGNED, UNSIGNED

PEAK = 65535
_BAND_PIXELS = 2**19  # read at once: intermediate arrays take up to 100 bytes a pixel


@dataclass(frozen=True)
class Wide:
    """Samples (height, width, channels) of an image, uint16 or float32 from 0 to PEAK, read band by band.

    The channels are grey, grey and alpha, RGB, or RGB and alpha. `read` returns those of a slice of rows; it raises
    ImageError where they are out of range.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    read: Callable[[slice], NDArray[Any]]

    def bands(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Yield slices of rows that cover the image, and their samples."""
        for rows in bands(*self.shape[:2], _BAND_PIXELS):
            yield rows, self.read(rows)


_NATIVE = {"little": "L", "big": "B"}[sys.byteorder]
_WIDE_COLOUR = {f"{mode};16{order}" for mode in ("RGB", "RGBA", "RGBX") for order in "LBN"}
_GREY_ALPHA = 4  # colour type of PNG
_PNG_DEPTH_AT, _PNG_COLOUR_AT = 24, 25
_SIZ, _PRECISION_AT = b"\xff\x51", 40  # of JPEG 2000: the marker of the sizes, and where it says bits - 1


def load_wide(opened: ImageFile, source: bytes, reopen: Callable[[], ImageFile]) -> Wide | None:
    """Load an image, and return its samples if they have more than 8 bits; None where `opened` itself holds them.

    Raises:
        ImageError: the image is damaged, or its samples are of a kind that can't be read right.
    """
    if isinstance(opened, PngImageFile):
        if len(source) <= _PNG_COLOUR_AT or source[_PNG_DEPTH_AT] != 16:
            call_pillow(opened.load)
            return None
        if source[_PNG_COLOUR_AT] == _GREY_ALPHA:
            return _grey_and_alpha(opened)
    elif isinstance(opened, TiffImageFile):
        _require_known_samples(opened)
        if max(_tag(opened, BITS, 1)) > 8 and opened.mode not in ("I", "F"):
            return _load_tiff(opened, reopen)
    elif isinstance(opened, PpmImageFile) and _ppm_peak(opened) > 255:
        return _load_ppm(opened, source)
    elif isinstance(opened, Jpeg2KImageFile):
        _require_8_bit_colour(opened, source)
    if any(_raw_mode(tile) in _WIDE_COLOUR for tile in opened.tile):
        return _high_and_low(opened, reopen())
    call_pillow(opened.load)
    return grey_samples(opened) if opened.mode.startswith(("I", "F")) else None


def grey_samples(picture: Image.Image) -> Wide:
    """Return the samples of a picture in mode I, I;16 or F: grey, and alpha where a value of it is transparent.

    Reading them raises ImageError for integers outside 0 to 65535, and for floats outside [0, 1].
    """
    transparent = picture.info.get("transparency")
    is_float, has_alpha = picture.mode == "F", isinstance(transparent, int) and picture.mode != "F"

    def read(rows: slice) -> NDArray[Any]:
        values = _rows(picture, rows)
        if is_float:
            if not (values.min() >= 0 and values.max() <= 1):  # NaN fails both
                raise ImageError("floating-point pixels outside [0, 1]: save it with 8 or 16 bits")
            return (values * np.float32(PEAK))[..., None]
        if values.min() < 0 or values.max() > PEAK:
            raise ImageError("32-bit integers outside 0 to 65535: save it with 8 or 16 bits")
        wide = values.astype(np.uint16)[..., None]
        return _with_alpha(wide, values != transparent) if has_alpha else wide

    shape = (picture.height, picture.width, 1 + has_alpha)
    return Wide(shape, np.dtype(np.float32 if is_float else np.uint16), read)


def _rows(picture: Image.Image, rows: slice) -> NDArray[Any]:
    return np.asarray(picture.crop((0, rows.start, picture.width, rows.stop)))


def _load_ppm(opened: PpmImageFile, source: bytes) -> Wide:
    """Read binary samples of two bytes, which Pillow reads one by one in Python."""
    start, highest = opened.tile[0][2], _ppm_peak(opened)
    shape = (opened.height, opened.width, 3 if opened.mode == "RGB" else 1)
    if len(source) < start + 2 * math.prod(shape):
        raise ImageError("cut short")
    values = np.frombuffer(source, ">u2", math.prod(shape), start).reshape(shape)

    def read(rows: slice) -> NDArray[Any]:
        scaled: NDArray[Any] = np.minimum(values[rows], highest) * np.float64(PEAK / highest)
        return scaled.round().astype(np.uint16)

    return Wide(shape, np.dtype(np.uint16), read)


def _ppm_peak(opened: PpmImageFile) -> int:
    """Return the highest value of the samples, where Pillow would decode them in Python; else 0."""
    codec, _, _, arguments = opened.tile[0]
    peak = arguments[1] if codec == "ppm" and isinstance(arguments, tuple) else 0
    return peak if isinstance(peak, int) else 0


def _require_8_bit_colour(opened: Jpeg2KImageFile, source: bytes) -> None:
    """Refuse JPEG 2000 colour of more bits, which Pillow rounds in a way of its own."""
    precision = source.find(_SIZ) + _PRECISION_AT
    if opened.mode in ("RGB", "RGBA", "YCbCr") and precision < len(source) and source[precision] & 0x7F > 7:
        raise ImageError("JPEG 2000 of more than 8 bits a colour: save it as 16-bit PNG")


def _load_tiff(opened: TiffImageFile, reopen: Callable[[], ImageFile]) -> Wide:
    bits, (photometric,) = max(_tag(opened, BITS, 1)), _tag(opened, PHOTOMETRIC, 1)
    if opened.mode.startswith("I;16"):
        call_pillow(opened.load)

        def read(rows: slice) -> NDArray[Any]:
            wide = _rows(opened, rows).astype(np.uint16)[..., None]
            if bits < 16:  # Pillow leaves them as they are
                wide = (wide.astype(np.uint32) * PEAK // (2**bits - 1)).astype(np.uint16)
            return PEAK - wide if photometric == 0 else wide

        return Wide((opened.height, opened.width, 1), np.dtype(np.uint16), read)
    if bits != 16 or opened.mode not in ("RGB", "RGBA", "RGBX"):
        raise ImageError(f"{bits}-bit TIFF of mode {opened.mode}, which is not supported: save it with 8 bits")
    if _tag(opened, PLANAR, 1) == (2,):
        if any(tile[0] != "raw" for tile in opened.tile):
            raise ImageError("16-bit TIFF of separate planes, compressed: save it without compression, or as PNG")
        order = "L" if opened.tag_v2.prefix == b"II" else "B"
        for each in (opened, again := reopen()):
            each.tile = [_renamed(tile, f"{_raw_mode(tile)};16{order}") for tile in each.tile]
        return _high_and_low(opened, again)
    return _high_and_low(opened, reopen())


def _require_known_samples(opened: TiffImageFile) -> None:
    formats, bits = set(_tag(opened, SAMPLE_FORMAT, UNSIGNED)), max(_tag(opened, BITS, 1))
    if SIGNED in formats and bits <= 16:
        raise ImageError(f"signed {bits}-bit numbers: save it with unsigned ones")
    if FLOAT in formats and _tag(opened, SAMPLES, 1) != (1,):
        raise ImageError("floating-point colour: save it with 8 or 16 bits")


def _high_and_low(high: ImageFile, low: ImageFile) -> Wide:
    swapped = {"L": "B", "B": "L", "N": "B" if _NATIVE == "L" else "L"}
    low.tile = [_renamed(tile, (mode := _raw_mode(tile))[:-1] + swapped[mode[-1]]) for tile in low.tile]
    call_pillow(high.load)
    call_pillow(low.load)
    channels = 4 if high.mode == "RGBA" else 3
    transparent = high.info.get("transparency") if channels == 3 else None
    has_alpha = isinstance(transparent, tuple)

    def read(rows: slice) -> NDArray[Any]:
        wide = _rows(high, rows)[..., :channels].astype(np.uint16)
        wide <<= 8
        wide |= _rows(low, rows)[..., :channels]
        return _with_alpha(wide, (wide != np.array(transparent, np.uint16)).any(axis=2)) if has_alpha else wide

    return Wide((high.height, high.width, channels + has_alpha), np.dtype(np.uint16), read)


def _with_alpha(wide: NDArray[Any], is_opaque: NDArray[np.bool_]) -> NDArray[Any]:
    return np.dstack([wide, is_opaque.astype(np.uint16) * PEAK])


def _grey_and_alpha(opened: PngImageFile) -> Wide:
    """Load 16-bit grey with alpha as the four bytes of each pixel: of `LA;16`, Pillow has one byte order only."""
    opened.tile = [_renamed(tile, "RGBA") for tile in opened.tile]
    call_pillow(opened.load)

    def read(rows: slice) -> NDArray[Any]:
        return np.ascontiguousarray(_rows(opened, rows)).view(">u2").astype(np.uint16)

    return Wide((opened.height, opened.width, 2), np.dtype(np.uint16), read)


def _tag(opened: TiffImageFile, tag: int, default: int) -> tuple[int, ...]:
    value = opened.tag_v2.get(tag, default)
    values = value if isinstance(value, tuple) else (value,)
    return tuple(each for each in values if isinstance(each, int)) or (default,)


def _raw_mode(tile: Any) -> str:
    arguments = tile[3]
    mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return mode if isinstance(mode, str) else ""


def _renamed(tile: Any, raw_mode: str) -> Any:
    arguments = tile[3]
    return tile._replace(args=(raw_mode, *arguments[1:]) if isinstance(arguments, tuple) else raw_mode)
