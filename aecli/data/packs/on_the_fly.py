"""A set too large to be kept decoded: its images are decoded whenever they are asked for."""

from collections.abc import Generator, Iterable, Mapping, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from aecli.data.decoding.decode import DecodeError, Pixels, decode_fitted
from aecli.data.image_ref import ImageRef
from aecli.errors import DataError, summarize
from aecli.runtime.threads import ordered_map, worker_count

BROKEN_LIMIT = 0.01  # share of the images


class OnTheFly:
    """In place of a packed array uint8 (N, 3, S, S): the same shape and rows, each decoded when it is asked for.

    The place of an image that can't be decoded is taken by the next one of the list that can (after the last comes the
    first; in a `part`, the next one of those), so that an image's row never depends on what was asked before. `skipped`
    (name -> reason) gets such images as they are met; one more than 1 % of the set raises a DataError.
    """

    def __init__(self, images: Sequence[ImageRef], size: int, how: str, workers: int | None = None) -> None:
        """Take what `decode_fitted` needs to know, and in how many threads several rows are decoded."""
        self._images = images
        self._size = size
        self._how = how
        self.workers = worker_count(workers)
        self.skipped: dict[str, str] = {}
        self._rows: NDArray[np.integer] = np.arange(len(images))  # that stand in for each other

    def part(self, rows: NDArray[np.integer]) -> "OnTheFly":
        """The same rows, of which only these (ascending) are asked for: none of the others takes a place among them."""
        part = OnTheFly(self._images, self._size, self._how, self.workers)
        part.skipped, part._rows = self.skipped, rows
        return part

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, 3, S, S)."""
        return len(self._images), 3, self._size, self._size

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, chosen: int | NDArray[np.integer]) -> Pixels:
        """One row (3, S, S), or the rows (n, 3, S, S) of an array of indices; raises IndexError as an array does."""
        if isinstance(chosen, np.ndarray):
            rows = np.empty((len(chosen), self._size, self._size, 3), dtype=np.uint8).transpose(0, 3, 1, 2)
            for pixels, row in zip(rows, self.rows(chosen), strict=True):
                pixels[:] = row
            return rows
        index = range(len(self))[chosen]
        start = int(np.searchsorted(self._rows, index))
        for place in chain(range(start, len(self._rows)), range(start)):
            image = self._images[int(self._rows[place])]
            if image.name in self.skipped:
                continue
            try:
                return decode_fitted(image, self._size, self._how).transpose(2, 0, 1)
            except DecodeError as error:
                self.skipped[image.name] = error.reason
                require_few_broken(self.skipped, len(self))
        raise DataError("none of the images that stand in for each other can be decoded")

    def rows(self, order: Iterable[int], ahead: int | None = None) -> Generator[Pixels, None, None]:
        """The rows (3, S, S) in this order, `ahead` of them decoded in threads before they are taken."""
        return ordered_map(self.__getitem__, order, self.workers, ahead)


def require_few_broken(skipped: Mapping[str, str], total: int) -> None:
    """Refuse a set of `total` images of which more than `BROKEN_LIMIT` couldn't be decoded (name -> reason).

    Raises:
        DataError: it names the first few.
    """
    if len(skipped) > BROKEN_LIMIT * total:
        raise DataError(
            f"{len(skipped)} of {total} images can't be decoded, more than {BROKEN_LIMIT:.0%}; repair or remove them: "
            f"{summarize(skipped)}"
        )


Images = Pixels | NDArray[np.float32] | OnTheFly  # the second: latents, which a prior learns from
