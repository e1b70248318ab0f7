"""A set too large to be kept decoded: its images are decoded whenever they are indexed."""

from collections.abc import Generator, Iterable, Mapping, Sequence
from copy import copy
from itertools import chain
from pathlib import Path
from threading import Lock

import numpy as np
import platformdirs
from numpy.typing import NDArray

from aecli.data.decoding.colour import Colour
from aecli.data.decoding.conversions import ConversionCounts
from aecli.data.decoding.decode import WHITE, DecodeError, Pixels, decode_fitted
from aecli.data.image_ref import ImageRef
from aecli.errors import MAX_LISTED, DataError, single_line, summarize
from aecli.runtime.threads import ordered_map, worker_count

BROKEN_LIMIT = 0.01  # fraction of the images


class OnTheFly:
    """Stands in for a packed array uint8 (N, 3, S, S): the same shape and rows, each decoded when it is indexed.

    An image that can't be decoded is replaced by the next one that can (of the list, or of the rows of a `subset`; the
    first follows the last), so that a row never depends on what was read before. `skipped` (name -> reason) collects
    such images; more than 1 % of the set raise a DataError.
    """

    def __init__(
        self,
        images: Sequence[ImageRef],
        size: int,
        how: str,
        workers: int | None = None,
        background: Colour = WHITE,
        skip_broken: bool = False,
    ) -> None:
        """`size`, `how`, `background` as for `decode_fitted`; `workers` threads decode when several rows are read.

        With `random-crop` a row is a whole picture (3, H, W), and rows are indexed one by one.
        """
        self._images = images
        self._size = size
        self._how = how
        self.workers = worker_count(workers)
        self._background, self._skip_broken = background, skip_broken
        self.skipped: dict[str, str] = {}
        self.conversions = ConversionCounts()
        self._is_counted = np.zeros(len(images), dtype=bool)
        self._lock = Lock()
        self._rows: NDArray[np.integer] = np.arange(len(images))  # that may replace each other

    def subset(self, rows: NDArray[np.integer]) -> "OnTheFly":
        """The same array, of which only `rows` (ascending) are read: a broken image is replaced by one of these."""
        subset = copy(self)
        subset._rows = rows
        return subset

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, 3, S, S)."""
        return len(self._images), 3, self._size, self._size

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, indices: int | NDArray[np.integer]) -> Pixels:
        """One row (3, S, S), or the rows (n, 3, S, S) of an array of indices; raises IndexError as an array does."""
        if isinstance(indices, np.ndarray):
            rows = np.empty((len(indices), self._size, self._size, 3), dtype=np.uint8).transpose(0, 3, 1, 2)
            for pixels, row in zip(rows, self.rows(indices), strict=True):
                pixels[:] = row
            return rows
        index = range(len(self))[indices]
        start = int(np.searchsorted(self._rows, index))
        for position in chain(range(start, len(self._rows)), range(start)):
            image = self._images[int(self._rows[position])]
            if image.name in self.skipped:
                continue
            try:
                decoded = decode_fitted(image, self._size, self._how, self._background)
            except DecodeError as error:
                self.skipped[image.name] = error.reason
                require_few_broken(self.skipped, len(self), self._skip_broken)
                continue
            with self._lock:
                if not self._is_counted[self._rows[position]]:
                    self._is_counted[self._rows[position]] = True
                    self.conversions.add(image.name, decoded)
            return decoded.pixels.transpose(2, 0, 1)
        raise DataError("none of the images can be decoded")

    def rows(self, order: Iterable[int], ahead: int | None = None) -> Generator[Pixels, None, None]:
        """Yield the rows (3, S, S) in this order, at most `ahead` of them decoded in threads in advance."""
        return ordered_map(self.__getitem__, order, self.workers, ahead)


def require_few_broken(skipped: Mapping[str, str], total: int, skip_broken: bool = False) -> None:
    """Raise DataError if more than `BROKEN_LIMIT` of `total` images couldn't be decoded (`skipped`: name -> reason).

    With `skip_broken` any number may be broken, but not all of them.
    """
    limit = total - 1 if skip_broken else BROKEN_LIMIT * total
    if skipped and len(skipped) > limit:
        above = "" if skip_broken else f", more than {BROKEN_LIMIT:.0%}"
        way_on = "" if skip_broken else ", or go on without them: --skip-broken"
        raise DataError(
            f"{len(skipped)} of {total} images can't be decoded{above}: {summarize(skipped)}\n"
            f"hint: repair or remove them{way_on}{_list_all(skipped)}"
        )


def _list_all(skipped: Mapping[str, str]) -> str:
    """Write all the names and reasons into a file, where a summary leaves some out, and name it; "" if it can't be."""
    if len(skipped) <= MAX_LISTED:
        return ""
    path = Path(platformdirs.user_cache_dir("aecli"), "broken-images.txt")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (f"{single_line(name)}\t{reason}\n" for name, reason in skipped.items())
        path.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
    except OSError:  # read-only: the summary has to do
        return ""
    return f"; all of them are listed in {path}"
