"""Pixels of any Pillow mode become 8-bit RGB."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aecli.data.decoding.pillow_calls import ImageError, call_pillow

_BAND_PIXELS = 2**22  # converted at once: intermediate arrays take up to 24 bytes a pixel


def to_rgb(picture: Image.Image) -> Image.Image:
    """The picture in mode RGB.

    Transparency is composited over white. 16-bit grey (also as 32-bit integers from 0 to 65535) is divided by 257 and
    rounded; floating-point pixels must lie in [0, 1].

    Raises:
        ImageError: pixels lie outside these ranges, or the palette is damaged.
    """
    if picture.mode.startswith("I"):
        return _wide_integers(picture)
    if picture.mode == "F":
        return _unit_floats(picture)
    if call_pillow(getattr, picture, "has_transparency_data"):
        return _over_white(picture)
    return picture if picture.mode == "RGB" else call_pillow(picture.convert, "RGB")


def _bands(height: int, width: int) -> Iterator[slice]:
    """Slices of rows that cover the picture: a single one unless it is large."""
    rows = max(1, _BAND_PIXELS // width)
    return (slice(top, min(top + rows, height)) for top in range(0, height, rows))


def _over_white(picture: Image.Image) -> Image.Image:
    result = Image.new("RGB", picture.size)
    for rows in _bands(picture.height, picture.width):
        band = call_pillow(picture.crop((0, rows.start, picture.width, rows.stop)).convert, "RGBA")
        result.paste(Image.alpha_composite(Image.new("RGBA", band.size, "white"), band), (0, rows.start))
    return result


def _wide_integers(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError("32-bit integers outside 0 to 65535: save it with 8 or 16 bits")
    transparent = picture.info.get("transparency")
    grey = np.empty(values.shape, dtype=np.uint8)
    for rows in _bands(*values.shape):
        wide = values[rows].astype(np.int32)
        if isinstance(transparent, int):
            wide[wide == transparent] = 65535
        grey[rows] = (wide + 128) // 257
    return _grey(grey)


def _unit_floats(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture)
    if not (values.min() >= 0 and values.max() <= 1):  # NaN fails both
        raise ImageError("floating-point pixels outside [0, 1]: save it with 8 or 16 bits")
    grey = np.empty(values.shape, dtype=np.uint8)
    for rows in _bands(*values.shape):
        grey[rows] = np.rint(values[rows] * 255)
    return _grey(grey)


def _grey(values: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(values).convert("RGB")
