"""Pictures as the bytes of a PNG file."""

from io import BytesIO

import numpy as np
from PIL import Image


def png_bytes(image: Image.Image) -> bytes:
    """The picture as the bytes of a PNG file."""
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


_PNG_LEVEL = 3


def encode_png(pixels: np.ndarray) -> bytes:
    """Return uint8 (3, H, W) as a PNG file's bytes."""
    file = BytesIO()
    # A thirteenth larger than at Pillow's level 6, in less than half of the time.
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(file, "PNG", compress_level=_PNG_LEVEL)
    return file.getvalue()
