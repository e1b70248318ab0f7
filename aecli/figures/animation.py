"""Pictures one after the other, there and back again, without an end."""

from collections.abc import Sequence
from io import BytesIO

from PIL import Image

FRAME_MILLISECONDS = 100
_REST_MILLISECONDS = 600  # at either end


def animation_bytes(frames: Sequence[Image.Image], suffix: str) -> bytes:
    """Return a `.gif` or `.webp` of at least two frames of one size, which goes through them and back.

    A WebP is lossless; a GIF has 256 colours, the same ones in all frames so that nothing flickers.
    """
    middle = list(frames[1:-1])
    shown = [frames[0], *middle, frames[-1], *reversed(middle)]
    times = [FRAME_MILLISECONDS] * len(shown)
    times[0] = times[len(frames) - 1] = _REST_MILLISECONDS
    buffer = BytesIO()
    if suffix == ".gif":
        palette = _beside(frames).quantize(256, method=Image.Quantize.MEDIANCUT)
        shown = [frame.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for frame in shown]
        shown[0].save(buffer, "GIF", save_all=True, append_images=shown[1:], duration=times, loop=0, optimize=False)
    else:
        shown[0].save(buffer, "WEBP", save_all=True, append_images=shown[1:], duration=times, loop=0, lossless=True)
    return buffer.getvalue()


def _beside(frames: Sequence[Image.Image]) -> Image.Image:
    """All frames in one picture."""
    whole = Image.new("RGB", (sum(frame.width for frame in frames), max(frame.height for frame in frames)))
    left = 0
    for frame in frames:
        whole.paste(frame, (left, 0))
        left += frame.width
    return whole
