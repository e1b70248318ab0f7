"""Samples of any kind become RGB over a background."""

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


def wide_to_rgb(wide: Wide, background: Colour, full_depth: bool) -> tuple[NDArray[Any], Conversion]:
    """Return wide samples (H, W, C) as RGB (H, W, 3), and how that changed them.

    At full depth they keep their type and range; else they become uint8, divided by 257 and rounded.
    """
    height, width, channels = wide.shape
    has_alpha = channels in (2, 4)
    if channels == 3 and full_depth:
        return wide, Conversion(0)
    rgb = np.empty((height, width, 3), dtype=wide.dtype if full_depth else np.uint8)
    highest_alpha = lowest_alpha = PEAK
    if has_alpha:
        lowest_alpha, highest_alpha = int(wide[..., -1].min()), int(wide[..., -1].max())
    for rows in bands(height, width):
        band = wide[rows, :, : channels - has_alpha]
        if lowest_alpha < PEAK:
            alpha = wide[rows, :, -1:].astype(np.float64) / PEAK
            band = band * alpha + (1 - alpha) * (np.array(background) * (PEAK // 255))
            band = np.rint(band).astype(np.uint16)
        if full_depth:
            rgb[rows] = band
        elif band.dtype == np.uint16:
            rgb[rows] = (band.astype(np.int32) + 128) // 257
        else:
            rgb[rows] = np.rint(band * np.float32(255 / PEAK))
    return rgb, as_kinds({
        Conversion.GREY: channels < 3,
        Conversion.BACKGROUND: lowest_alpha < PEAK,
        Conversion.TRANSPARENT: highest_alpha == 0,
    })  # fmt: skip


def _composited(picture: Image.Image, background: Colour) -> tuple[Image.Image, Conversion]:
    result = Image.new("RGB", picture.size)
    lowest, highest = 255, 0
    for rows in bands(picture.height, picture.width):
        band = call_pillow(picture.crop((0, rows.start, picture.width, rows.stop)).convert, "RGBA")
        alpha = np.asarray(band)[..., 3]
        lowest, highest = min(lowest, int(alpha.min())), max(highest, int(alpha.max()))
        result.paste(Image.alpha_composite(Image.new("RGBA", band.size, background), band), (0, rows.start))
    return result, as_kinds({Conversion.BACKGROUND: lowest < 255, Conversion.TRANSPARENT: highest == 0})
