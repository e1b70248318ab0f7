"""Whole pictures of different sizes, and the pieces of one size that an epoch takes of them."""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aecli.data.decoding.decode import Pixels, resize
from aecli.data.packs.on_the_fly import OnTheFly
from aecli.runtime.threads import ordered_map, worker_count

_PLACES_SPAWN_KEY = (2,)  # the order of an epoch takes the parent seed sequence, its flips (1,)


@dataclass(frozen=True, eq=False)
class WholeImages:
    """Decoded pictures, each uint8 (3, H, W) of its own size, read-only: in memory or memory-mapped."""

    pictures: Sequence[Pixels]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Pixels:
        """One picture (3, H, W)."""
        return self.pictures[index]


Images = Pixels | NDArray[np.float32] | OnTheFly | WholeImages  # float32: latents


@dataclass(frozen=True, eq=False)
class Pieces:
    """Stands in for an array uint8 (N, 3, S, S): a piece of each of N pictures, cut when it is indexed.

    `places` (N, 2), from 0 to below 1, say where: 0 at the top and at the left.
    """

    images: WholeImages | OnTheFly
    size: int
    places: NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, 3, S, S)."""
        return len(self.images), 3, self.size, self.size

    @property
    def workers(self) -> int:
        """Threads that cut pieces."""
        return self.images.workers if isinstance(self.images, OnTheFly) else worker_count(None)

    def __getitem__(self, index: int) -> Pixels:
        """The piece (3, S, S) of one picture."""
        return cut_piece(self.images[index], self.size, self.places[index])

    def rows(self, order: Iterable[int], ahead: int | None = None) -> Generator[Pixels, None, None]:
        """Yield pieces (3, S, S) in this order, at most `ahead` of them made in threads in advance."""
        return ordered_map(self.__getitem__, order, self.workers, ahead)


def epoch_places(n: int, seed: int, epoch: int) -> NDArray[np.float64]:
    """Where an epoch cuts its piece of each of `n` pictures: (n, 2) in [0, 1), by image, not by place in the order."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch], spawn_key=_PLACES_SPAWN_KEY)).random((n, 2))


def cut_piece(picture: Pixels, size: int, place: NDArray[np.float64]) -> Pixels:
    """The piece (3, size, size) of a picture (3, H, W) at `place`; see `Pieces`.

    Of a picture whose short side is less, the piece is as large as that side, and is resized up.
    """
    side = min(size, *picture.shape[1:])
    top, left = (int(at * (length - side + 1)) for at, length in zip(place, picture.shape[1:], strict=True))
    piece = picture[:, top : top + side, left : left + side]
    if side == size:
        return piece
    return resize(np.ascontiguousarray(piece.transpose(1, 2, 0)), size, size).transpose(2, 0, 1)
