"""The `demo` source: colour photographs that ship inside scikit-image, cut into 256x256 tiles."""

import importlib.util
import itertools
from functools import lru_cache, partial
from math import ceil
from pathlib import Path

from PIL import Image

from aecli.data.image_ref import ImageRef
from aecli.errors import DataError

# Photographs in the scikit-image wheel: group (what a split keeps together), prefix of the tiles' names, file, and the
# lengths in pixels to which the short side is scaled before the photograph is cut.
_SIDE = 256
_PHOTOGRAPHS = (
    ("astronaut", "", "astronaut.png", (256, 384, 512)),
    ("chelsea", "", "chelsea.png", (256, 300)),
    ("coffee", "", "coffee.png", (256, 400)),
    ("hubble_deep_field", "", "hubble_deep_field.jpg", (256,)),
    ("ihc", "", "ihc.png", (256, 512)),
    ("motorcycle", "left-", "motorcycle_left.png", (256, 384)),
    ("motorcycle", "right-", "motorcycle_right.png", (256, 384)),
    ("retina", "", "retina.jpg", (256, 512)),
    ("rocket", "", "rocket.jpg", (256, 427)),
)


def list_demo() -> list[ImageRef]:
    """List the tiles: each photograph at one to three scales, cut into overlapping tiles.

    The group is the photograph (both pictures of a stereo pair are one), so that a split holds out whole photographs.

    Raises:
        DataError: scikit-image's data is not installed.
    """
    package = importlib.util.find_spec("skimage")  # importing it takes a while
    folders = (package.submodule_search_locations if package else None) or []
    images: list[ImageRef] = []
    for group, prefix, file, short_sides in _PHOTOGRAPHS:
        path = next((path for folder in folders if (path := Path(folder, "data", file)).is_file()), None)
        if path is None:
            raise DataError(
                f"demo: scikit-image's {file} is not installed\nhint: pip install --force-reinstall scikit-image"
            )
        for level, short_side in enumerate(short_sides):
            width, height = _scaled_size(path, short_side)
            for (row, top), (column, left) in itertools.product(_tile_offsets(height), _tile_offsets(width)):
                name = f"{group}/{prefix}s{level}-r{row}-c{column}.png"
                fingerprint = f"{path.stat().st_size}:{short_side}:{top}:{left}"
                images.append(ImageRef(name, group, fingerprint, partial(_demo_tile, path, short_side, top, left)))
    return images


def _scaled_size(path: Path, short_side: int) -> tuple[int, int]:
    """(width, height) once the photograph's short side is scaled to `short_side` pixels."""
    with Image.open(path) as photograph:
        width, height = photograph.size
    scale = short_side / min(width, height)
    return round(width * scale), round(height * scale)


def _tile_offsets(length: int) -> list[tuple[int, int]]:
    """(index, offset) of tiles spaced evenly over `length` pixels, at most half a tile apart."""
    gaps = ceil((length - _SIDE) / (_SIDE // 2))
    return [(index, round(index * (length - _SIDE) / max(gaps, 1))) for index in range(gaps + 1)]


@lru_cache(maxsize=4)  # tiles are read in order of name: those of one photograph follow each other
def _scaled_photograph(path: Path, short_side: int) -> Image.Image:
    with Image.open(path) as photograph:
        scaled = photograph.convert("RGB").resize(_scaled_size(path, short_side), Image.Resampling.LANCZOS)
    scaled.info.pop("icc_profile", None)  # the rocket's is Adobe RGB: known, and not worth a notice in every first run
    return scaled


def _demo_tile(path: Path, short_side: int, top: int, left: int) -> Image.Image:
    return _scaled_photograph(path, short_side).crop((left, top, left + _SIDE, top + _SIDE))
