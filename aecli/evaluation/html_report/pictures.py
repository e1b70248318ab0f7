"""The pictures of a page: stored while images are measured, kept within the page or in a folder beside it."""

import base64
import os
import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

from aecli.data.decoding.decode import Pixels, resize
from aecli.errors import OutputError
from aecli.storage.atomic_files import list_names, replace_folder

VIEW_SIDE = 512  # pixels of a picture's longer side; what is larger is shown reduced
EMBED_BYTES = 24_000_000  # of pictures within a page; a browser opens that at once, and mail carries it
SUFFIX = ".webp"


def folder_beside(page: Path) -> Path:
    """The folder that a page's pictures are kept in if they are too many for the page itself."""
    return page.with_name(f"{page.stem}_files")


def require_ours(page: Path, sources: Sequence[str]) -> None:
    """Find out, before the work, that `folder_beside` can be written or replaced.

    Raises:
        OutputError: something other than pictures stands there, or one of `sources`, which are read, lies in it.
    """
    folder = folder_beside(page)
    if not os.path.lexists(folder):
        return
    held = list_names(folder) if folder.is_dir() and not folder.is_symlink() else ["not a folder"]
    if not all(re.fullmatch(rf"\d+-\d+\{SUFFIX}", name) for name in held):
        raise OutputError(
            f"--report {page}: its pictures go into {folder}, which holds other things; name another page"
        )
    if any(Path(source).resolve().is_relative_to(folder.resolve()) for source in sources):
        raise OutputError(f"--report {page}: its pictures go into {folder}, which is read; name another page")


def store(folder: Path, number: int, images: Sequence[Pixels]) -> None:
    """Store the ground truth and the predictions, uint8 (H, W, 3), of pair `number`, without loss but for the size.

    Raises:
        OutputError: the disk is full, or the folder can't be written.
    """
    for column, pixels in enumerate(images):
        height, width = pixels.shape[:2]
        shrink = min(1.0, VIEW_SIDE / max(height, width))
        reduced = resize(pixels, max(1, round(height * shrink)), max(1, round(width * shrink)), method="bicubic")
        buffer = BytesIO()
        # Lossless, so that a difference is one. Its fastest setting beats PNG in time and in size.
        Image.fromarray(reduced).save(buffer, "WEBP", lossless=True, quality=0, method=0)
        path = folder / file_name(number, column)
        try:
            path.write_bytes(buffer.getvalue())
        except OSError as error:
            raise OutputError(f"{path} can't be written: {error.strerror or error}") from error


def file_name(number: int, column: int) -> str:
    """What the picture of pair `number` is called, `column` 0 being the ground truth: never by a stranger's name."""
    return f"{number}-{column}{SUFFIX}"


def keep(scratch: Path, page: Path, numbers: Sequence[int], columns: int) -> list[list[str]] | None:
    """Bring pictures of pairs `numbers` out of `scratch`: as data URLs, a list a pair, or beside the page (None)."""
    if sum(entry.stat().st_size for entry in os.scandir(scratch)) > EMBED_BYTES:
        replace_folder(scratch, folder_beside(page))
        return None
    return [[_data_url(scratch / file_name(number, column)) for column in range(columns)] for number in numbers]


def _data_url(file: Path) -> str:
    return f"data:image/webp;base64,{base64.b64encode(file.read_bytes()).decode()}"
