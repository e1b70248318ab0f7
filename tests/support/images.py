"""Images made on the spot."""

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch


def picture(height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    """A smooth coloured uint8 (H, W, 3) picture with noise: every corner differs."""
    rows, columns = np.mgrid[0:height, 0:width]
    smooth = np.stack([rows / height, columns / width, (rows + columns) / (height + width)], axis=-1)
    noise = np.random.default_rng(seed).random((height, width, 3))
    return (255 * (0.8 * smooth + 0.2 * noise)).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, format: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    pil = image if isinstance(image, Image.Image) else Image.fromarray(image)
    pil.save(buffer, format, **options)
    return buffer.getvalue()


def save_image(path: Path, pixels: np.ndarray, **options: object) -> None:
    """Write an image file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def read_rgb(path: Path) -> np.ndarray:
    """The pixels uint8 (H, W, 3) of an image file."""
    return np.array(Image.open(path).convert("RGB"))


def truncate(path: Path) -> None:
    """Cut a file in half: of an image, a whole header and part of the pixels."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def batch(*images: np.ndarray) -> "torch.Tensor":
    """Images (H, W, 3) as a uint8 tensor (N, 3, H, W)."""
    import torch  # the campaign of hostile images does without: its libraries alone exceed that one's address space

    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def hand_made_png(width, height, depth, colour, rows, extra=b""):
    """A PNG written by hand: `rows` are the unfiltered rows' bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
