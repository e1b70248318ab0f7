"""Animated GIF and WebP that play forwards and backwards in a loop."""

from collections.abc import Sequence
from io import BytesIO

from PIL import Image

FRAME_MILLISECONDS = 100
_PAUSE_MILLISECONDS = 600  # at either end


def animation_bytes(frames: Sequence[Image.Image], suffix: str) -> bytes:
    """Return a `.gif` or `.webp` file of at least two frames of one size, played forwards and backwards.

    A WebP is lossless; a GIF has 256 colours, the same in all frames so that it doesn't flicker.
    """
    middle = list(frames[1:-1])
    sequence = [frames[0], *middle, frames[-1], *reversed(middle)]
    times = [FRAME_MILLISECONDS] * len(sequence)
    times[0] = times[len(frames) - 1] = _PAUSE_MILLISECONDS
    buffer = BytesIO()
    if suffix == ".gif":
        palette = _side_by_side(frames).quantize(256, method=Image.Quantize.MEDIANCUT)
        sequence = [frame.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for frame in sequence]
        sequence[0].save(
            buffer, "GIF", save_all=True, append_images=sequence[1:], duration=times, loop=0, optimize=False
        )
    else:
        sequence[0].save(
            buffer, "WEBP", save_all=True, append_images=sequence[1:], duration=times, loop=0, lossless=True
        )
    return buffer.getvalue()


def _side_by_side(frames: Sequence[Image.Image]) -> Image.Image:
    """All frames in one picture, from left to right."""
    whole = Image.new("RGB", (sum(frame.width for frame in frames), max(frame.height for frame in frames)))
    left = 0
    for frame in frames:
        whole.paste(frame, (left, 0))
        left += frame.width
    return whole
