"""How a picture is cut into tiles."""

from collections.abc import Iterator
from dataclasses import dataclass

Box = tuple[slice, slice]  # rows and columns


@dataclass(frozen=True)
class Tile:
    """A part of a picture: what is `read` of it, what of that is `kept`, and where that is `written`."""

    read: Box
    kept: Box
    written: Box


def cut(size: tuple[int, int], side: int, margin: int, multiple: int) -> Iterator[Tile]:
    """Yield the tiles of a picture of size (H, W), row by row: of about equal sides, `side` at most, with a margin.

    The margin ends with the picture. All four numbers are multiples of `multiple`, and so are the tiles' places.
    """
    columns = list(_spans(size[1], side, margin, multiple))
    for rows in _spans(size[0], side, margin, multiple):
        for across in columns:
            read, kept, written = zip(rows, across, strict=True)
            yield Tile(read, kept, written)


def _spans(length: int, side: int, margin: int, multiple: int) -> Iterator[tuple[slice, slice, slice]]:
    """Yield the same three of one axis."""
    count = -(-length // side)
    step = -(-length // (count * multiple)) * multiple
    for start in range(0, length, step):
        end = min(start + step, length)
        first, last = max(0, start - margin), min(length, end + margin)
        yield slice(first, last), slice(start - first, end - first), slice(start, end)
