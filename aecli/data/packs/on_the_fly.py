"""A set too large to be kept decoded: its images are decoded whenever they are indexed."""

from collections.abc import Generator, Iterable, Mapping, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from aecli.data.decoding.decode import DecodeError, Pixels, decode_fitted
from aecli.data.image_ref import ImageRef
from aecli.errors import DataError, summarize
from aecli.runtime.threads import ordered_map, worker_count

BROKEN_LIMIT = 0.01  # fraction of the images


class OnTheFly:
    """Stands in for a packed array uint8 (N, 3, S, S): the same shape and rows, each decoded when it is indexed.

    An image that can't be decoded is replaced by the next one that can (of the list, or of the rows of a `subset`; the
    first follows the last), so that a row never depends on what was read before. `skipped` (name -> reason) collects
    such images; more than 1 % of the set raise a DataError.
    """

    def __init__(self, images: Sequence[ImageRef], size: int, how: str, workers: int | None = None) -> None:
        """`size` and `how` as for `decode_fitted`; `workers` threads decode when several rows are asked for."""
        self._images = images
        self._size = size
        self._how = how
        self.workers = worker_count(workers)
        self.skipped: dict[str, str] = {}
        self._rows: NDArray[np.integer] = np.arange(len(images))  # that may replace each other

    def subset(self, rows: NDArray[np.integer]) -> "OnTheFly":
        """The same array, of which only `rows` (ascending) are read: a broken image is replaced by one of these."""
        subset = OnTheFly(self._images, self._size, self._how, self.workers)
        subset.skipped, subset._rows = self.skipped, rows
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
                return decode_fitted(image, self._size, self._how).pixels.transpose(2, 0, 1)
            except DecodeError as error:
                self.skipped[image.name] = error.reason
                require_few_broken(self.skipped, len(self))
        raise DataError("none of the images can be decoded")

    def rows(self, order: Iterable[int], ahead: int | None = None) -> Generator[Pixels, None, None]:
        """Yield the rows (3, S, S) in this order, at most `ahead` of them decoded in threads in advance."""
        return ordered_map(self.__getitem__, order, self.workers, ahead)


def require_few_broken(skipped: Mapping[str, str], total: int) -> None:
    """Raise DataError if more than `BROKEN_LIMIT` of `total` images couldn't be decoded (`skipped`: name -> reason)."""
    if len(skipped) > BROKEN_LIMIT * total:
        raise DataError(
            f"{len(skipped)} of {total} images can't be decoded, more than {BROKEN_LIMIT:.0%}: {summarize(skipped)}\n"
            "hint: repair or remove them"
        )


Images = Pixels | NDArray[np.float32] | OnTheFly  # float32: latents
