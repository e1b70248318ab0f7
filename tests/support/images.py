"""Images made on the spot, without PyTorch: the campaign of hostile images caps its address space."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


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


def find(picture: np.ndarray | Image.Image, tile: np.ndarray) -> list[tuple[int, int]]:
    """Every (top, left) at which the tile's pixels are in the picture."""
    pixels = np.asarray(picture)
    windows = np.lib.stride_tricks.sliding_window_view(pixels, tile.shape)[:, :, 0]
    first = (pixels[: windows.shape[0], : windows.shape[1]] == tile[0, 0]).all(-1)
    return [(int(y), int(x)) for y, x in np.argwhere(first) if (windows[y, x] == tile).all()]


def enlarged(image: np.ndarray, factor: int) -> np.ndarray:
    return image.repeat(factor, 0).repeat(factor, 1)
