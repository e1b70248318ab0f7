"""Images in labelled rows or on a sheet. Small images are enlarged without smoothing: a pixel becomes a square."""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from math import ceil, isqrt
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from aecli.errors import OutputError

MIN_TILE = 128  # pixels; smaller images are enlarged by an integer factor
MAX_TILE = 512  # larger images are reduced, so that any viewer opens a row of ten
BACKGROUND = (255, 255, 255)
INK = (26, 26, 26)
ELLIPSIS = "…"
MAX_CHARACTERS = 1000  # of a label: more than fit; Pillow refuses to measure very long texts


def draw_rows(
    rows: Sequence[tuple[str, Sequence[np.ndarray]]], tile: int | None = None, heads: Sequence[str] = ()
) -> Image.Image:
    """Draw a row of images for each (label, images), the label to its left, and `heads` above the columns.

    Args:
        rows: labels, of any text, and images uint8 (H, W, 3), whose sizes may differ.
        tile: pixels of the longer side of every image as drawn. By default the longest side of all images, times the
            smallest integer that makes it at least 128 pixels, and at most 512.
        heads: a line per column, cut to the column's width.

    Raises:
        ValueError: there is no image, or one is not uint8 (H, W, 3).
        OutputError: Pillow was built without font support.
    """
    tile, cell_height, cell_width = _cell([image for _, images in rows for image in images], tile)
    gap, margin = _gap(tile), _margin(tile)
    font_size = max(13, round(0.14 * tile))
    font = _font(font_size, [*(label for label, _ in rows), *heads])
    line_height = sum(font.getmetrics())
    lines = [_wrap(label, font, 10 * font_size, max(1, cell_height // line_height)) for label, _ in rows]
    widest = ceil(max((font.getlength(line) for label in lines for line in label), default=0.0))
    left = margin + (widest + margin if widest else 0)
    columns = max(len(images) for _, images in rows)
    # A row is at least as high as a line of text, so that labels are never clipped.
    row_height = max(cell_height, line_height if widest else 0)
    under = margin + (line_height + gap if heads else 0)
    size = (left + columns * (cell_width + gap) - gap + margin, under + margin + len(rows) * (row_height + gap) - gap)
    picture = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for column, head in enumerate(heads):
        middle = left + column * (cell_width + gap) + cell_width // 2
        text = (_wrap(head, font, cell_width, 1) or [""])[0]
        draw.text((middle, margin), text, fill=INK, font=font, anchor="ma")
    for row, (_, images) in enumerate(rows):
        top = under + row * (row_height + gap)
        _draw_lines(draw, lines[row], font, right=left - margin, middle=top + row_height / 2)
        for column, image in enumerate(images):
            cell = (left + column * (cell_width + gap), top, cell_width, row_height)
            _paste(picture, image, tile, cell)
    return picture


def draw_sheet(images: Sequence[np.ndarray], tile: int | None = None) -> Image.Image:
    """Draw images uint8 (H, W, 3) row by row on a sheet of about as many rows as columns.

    `tile` and the ValueError are as in `draw_rows`.
    """
    tile, cell_height, cell_width = _cell(images, tile)
    gap, margin = _gap(tile), _margin(tile)
    columns = isqrt(len(images) - 1) + 1
    rows = ceil(len(images) / columns)
    size = (2 * margin + columns * (cell_width + gap) - gap, 2 * margin + rows * (cell_height + gap) - gap)
    picture = Image.new("RGB", size, BACKGROUND)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        cell = (margin + column * (cell_width + gap), margin + row * (cell_height + gap), cell_width, cell_height)
        _paste(picture, image, tile, cell)
    return picture


def _gap(tile: int) -> int:
    return max(2, round(tile / 48))


def _margin(tile: int) -> int:
    return max(6, round(tile / 10))


def _cell(images: Sequence[np.ndarray], tile: int | None) -> tuple[int, int, int]:
    """The tile, and the height and width of a cell that holds any of the images."""
    for image in images:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ValueError(f"expected images of uint8 (H, W, 3), got {image.dtype} {image.shape}")
    if not images:
        raise ValueError("expected at least one image")
    if tile is None:
        longest = max(max(image.shape[:2]) for image in images)
        tile = min(longest * ceil(MIN_TILE / longest), MAX_TILE)
    sizes = [_drawn_size(image, tile) for image in images]
    return tile, max(height for _, height in sizes), max(width for width, _ in sizes)


def _drawn_size(image: np.ndarray, tile: int) -> tuple[int, int]:
    """Width and height of the image when its longer side is `tile`."""
    height, width = image.shape[:2]
    longest = max(height, width)
    return max(1, round(width * tile / longest)), max(1, round(height * tile / longest))


def _paste(picture: Image.Image, image: np.ndarray, tile: int, cell: tuple[int, int, int, int]) -> None:
    """Draw the image in the middle of `cell` (left, top, width, height)."""
    drawn = Image.fromarray(np.ascontiguousarray(image))
    width, height = _drawn_size(image, tile)
    factor = ceil(tile / max(drawn.size))
    if factor > 1:
        drawn = drawn.resize((drawn.width * factor, drawn.height * factor), Image.Resampling.NEAREST)
    if drawn.size != (width, height):
        # Enlarged pixels keep their exact area also if the factor is not an integer; only reductions are filtered.
        kind = Image.Resampling.BOX if factor > 1 else Image.Resampling.LANCZOS
        drawn = drawn.resize((width, height), kind)
    left, top, cell_width, cell_height = cell
    picture.paste(drawn, (left + (cell_width - width) // 2, top + (cell_height - height) // 2))


def _font(size: int, labels: Sequence[str]) -> ImageFont.FreeTypeFont:
    """Pillow's own font, which covers ASCII; for labels like "β-VAE" DejaVu Sans, which matplotlib ships."""
    package = find_spec("matplotlib")
    if package and package.origin and not all(label.isascii() for label in labels):
        dejavu = Path(package.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"
        if dejavu.is_file():
            return ImageFont.truetype(dejavu, size)
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise OutputError(
            "this build of Pillow can't draw text (no FreeType)\nhint: reinstall it, pip install -U pillow"
        )
    return font


def _wrap(label: str, font: ImageFont.FreeTypeFont, width: int, max_lines: int) -> list[str]:
    """Break a label into lines of at most `width` pixels, preferably at spaces and after - _ /.

    Text beyond `max_lines` is replaced by an ellipsis. Control characters, including line breaks, become spaces.
    """
    text = " ".join("".join(c if c.isprintable() else " " for c in label[:MAX_CHARACTERS]).split())
    lines = [""]
    for word in re.findall(r" ?[^ \-_/]*[\-_/]?", text):
        if font.getlength(lines[-1] + word) <= width:
            lines[-1] += word
            continue
        lines.append("")
        for character in word.strip():
            if lines[-1] and font.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    lines = [line for line in lines if line]
    if len(lines) <= max_lines:
        return lines
    last = lines[max_lines - 1]
    while last and font.getlength(last + ELLIPSIS) > width:
        last = last[:-1]
    return [*lines[: max_lines - 1], last.rstrip() + ELLIPSIS]


def _draw_lines(
    draw: ImageDraw.ImageDraw, lines: list[str], font: ImageFont.FreeTypeFont, right: int, middle: float
) -> None:
    """Draw the lines right-aligned and vertically centred on `middle`, at integer positions so that they stay sharp."""
    ascent, descent = font.getmetrics()
    top = round(middle - len(lines) * (ascent + descent) / 2)
    for i, line in enumerate(lines):
        draw.text((right, top + i * (ascent + descent)), line, fill=INK, font=font, anchor="ra")
