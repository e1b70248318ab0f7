"""The pictures of a page: stored while images are measured, then embedded in the page or put in a folder beside it."""

import base64
import os
import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

from aecli.data.decoding.decode import Pixels, resize
from aecli.errors import OutputError
from aecli.storage.atomic_files import as_output_error, list_names, replace_folder

VIEW_SIDE = 512  # pixels of a picture's longer side; larger images are reduced
EMBED_BYTES = 24_000_000  # of pictures in a page at most: small enough to open at once, and to mail
SUFFIX = ".webp"


def folder_beside(page: Path) -> Path:
    """The folder of a page's pictures if they are too many to embed."""
    return page.with_name(f"{page.stem}_files")


def check_folder(page: Path, sources: Sequence[str]) -> None:
    """Raise OutputError, before the work, if `folder_beside` holds other than pictures, or one of the inputs."""
    folder = folder_beside(page)
    if not os.path.lexists(folder):
        return
    names = list_names(folder) if folder.is_dir() and not folder.is_symlink() else ["not a folder"]
    problem = None
    if not all(re.fullmatch(rf"\d+-\d+\{SUFFIX}", name) for name in names):
        problem = "holds other files"
    elif any(Path(source).resolve().is_relative_to(folder.resolve()) for source in sources):
        problem = "is an input"
    if problem:
        raise OutputError(
            f"--report {page}: its pictures go into {folder}, which {problem}\nhint: choose another file name"
        )


def store(folder: Path, number: int, images: Sequence[Pixels]) -> None:
    """Store the ground truth and the predictions, uint8 (H, W, 3), of pair `number`; lossless except for the size.

    Raises OutputError if the disk is full, or the folder can't be written.
    """
    for column, pixels in enumerate(images):
        height, width = pixels.shape[:2]
        shrink = min(1.0, VIEW_SIDE / max(height, width))
        reduced = resize(pixels, max(1, round(height * shrink)), max(1, round(width * shrink)), method="bicubic")
        buffer = BytesIO()
        # Lossless, so that the difference shown is real. WebP's fastest setting beats PNG in time and in size.
        Image.fromarray(reduced).save(buffer, "WEBP", lossless=True, quality=0, method=0)
        path = folder / file_name(number, column)
        with as_output_error(path):
            path.write_bytes(buffer.getvalue())


def file_name(number: int, column: int) -> str:
    """The file name of a picture of pair `number`, `column` 0 being the ground truth; never made of an input's name."""
    return f"{number}-{column}{SUFFIX}"


def embed_or_move(scratch: Path, page: Path, numbers: Sequence[int], columns: int) -> list[list[str]] | None:
    """The pictures of pairs `numbers` as data URLs, a list per pair; or None, and they are moved beside the page."""
    if sum(entry.stat().st_size for entry in os.scandir(scratch)) > EMBED_BYTES:
        replace_folder(scratch, folder_beside(page))
        return None
    return [[_data_url(scratch / file_name(number, column)) for column in range(columns)] for number in numbers]


def _data_url(file: Path) -> str:
    return f"data:image/webp;base64,{base64.b64encode(file.read_bytes()).decode()}"
