"""Samples of any kind become RGB over a background."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from aecli.data.decoding.conversions import Conversion, as_kinds
from aecli.data.decoding.limits import bands
from aecli.data.decoding.pillow_calls import call_pillow
from aecli.data.decoding.wide import PEAK, Wide

Colour = tuple[int, int, int]  # 8-bit RGB


def parse_colour(text: str) -> Colour:
    """Return the colour that `white`, `black` or `#RRGGBB` names."""
    red, green, blue = ImageColor.getrgb(text)[:3]
    return red, green, blue


def to_rgb(picture: Image.Image, background: Colour) -> tuple[Image.Image, Conversion]:
    """Return an 8-bit picture in mode RGB, composited over the background, and how that changed it.

    Raises:
        ImageError: the palette is damaged.
    """
    kinds = as_kinds({Conversion.GREY: picture.mode in ("1", "L", "LA", "La")})
    if call_pillow(getattr, picture, "has_transparency_data"):
        composited, transparency = _composited(picture, background)
        return composited, kinds | transparency
    return (picture if picture.mode == "RGB" else call_pillow(picture.convert, "RGB")), kinds


def wide_to_rgb(wide: Wide, background: Colour) -> tuple[Image.Image, Conversion, int]:
    """Return wide samples as an 8-bit picture in mode RGB, divided by 257 and rounded; how, and their highest value.

    Raises:
        ImageError: samples are out of range.
    """
    picture = Image.new("RGB", (wide.shape[1], wide.shape[0]))

    def keep(rows: slice, band: NDArray[Any]) -> None:
        if band.dtype == np.uint16:
            eight = ((band.astype(np.int32) + 128) // 257).astype(np.uint8)
        else:
            eight = np.rint(band * np.float32(255 / PEAK)).astype(np.uint8)
        rgb = np.ascontiguousarray(np.broadcast_to(eight, (*eight.shape[:2], 3)))
        picture.paste(Image.fromarray(rgb), (0, rows.start))

    kinds, peak = _over_background(wide, background, keep)
    return picture, kinds, peak


def wide_values(wide: Wide, background: Colour) -> tuple[NDArray[Any], Conversion, int]:
    """Return wide samples as RGB (H, W, 3) of their own type and range; see `wide_to_rgb`."""
    values = np.empty((*wide.shape[:2], 3), dtype=wide.dtype)

    def keep(rows: slice, band: NDArray[Any]) -> None:
        values[rows] = band

    kinds, peak = _over_background(wide, background, keep)
    return values, kinds, peak


def _over_background(
    wide: Wide, background: Colour, keep: Callable[[slice, NDArray[Any]], None]
) -> tuple[Conversion, int]:
    """Call `keep` with each band, composited over the background; return how that changed it, and the highest value."""
    channels = wide.shape[2]
    has_alpha = channels in (2, 4)
    peak, lowest, highest = 0, PEAK, 0
    for rows, samples in wide.bands():
        band = samples[..., : channels - has_alpha]
        peak = max(peak, math.ceil(band.max()))
        if has_alpha and (least := int(samples[..., -1].min())) < PEAK:
            lowest = min(lowest, least)
            alpha = samples[..., -1:] / np.float64(PEAK)
            band = np.rint(band * alpha + (1 - alpha) * (np.array(background) * (PEAK // 255))).astype(np.uint16)
        highest = max(highest, int(samples[..., -1].max()) if has_alpha else PEAK)
        keep(rows, band)
    kinds = as_kinds({
        Conversion.GREY: channels < 3,
        Conversion.BACKGROUND: lowest < PEAK,
        Conversion.TRANSPARENT: highest == 0,
    })  # fmt: skip
    return kinds, peak


def _composited(picture: Image.Image, background: Colour) -> tuple[Image.Image, Conversion]:
    result = Image.new("RGB", picture.size)
    lowest, highest = 255, 0
    for rows in bands(picture.height, picture.width):
        band = call_pillow(picture.crop((0, rows.start, picture.width, rows.stop)).convert, "RGBA")
        alpha = np.asarray(band)[..., 3]
        lowest, highest = min(lowest, int(alpha.min())), max(highest, int(alpha.max()))
        result.paste(Image.alpha_composite(Image.new("RGBA", band.size, background), band), (0, rows.start))
    return result, as_kinds({Conversion.BACKGROUND: lowest < 255, Conversion.TRANSPARENT: highest == 0})
