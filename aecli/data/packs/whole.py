"""Whole pictures of different sizes, and the pieces of one size that an epoch takes of them."""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aecli.data.decoding.decode import Pixels, resize
from aecli.data.packs.on_the_fly import OnTheFly
from aecli.runtime.threads import ordered_map, worker_count

_PLACES_SPAWN_KEY, _SCALES_SPAWN_KEY = (2,), (4,)  # the order of an epoch takes the parent, orientations (1,) and (3,)


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

    `places` (N, 2), from 0 to below 1, say where: 0 at the top and at the left. `scales` (N,), likewise, say how large
    a piece is before it is resized to S; without them it has that size.
    """

    images: WholeImages | OnTheFly
    size: int
    places: NDArray[np.float64]
    scales: NDArray[np.float64] | None = None

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
        scale = None if self.scales is None else float(self.scales[index])
        return cut_piece(self.images[index], self.size, self.places[index], scale)

    def rows(self, order: Iterable[int], ahead: int | None = None) -> Generator[Pixels, None, None]:
        """Yield pieces (3, S, S) in this order, at most `ahead` of them made in threads in advance."""
        return ordered_map(self.__getitem__, order, self.workers, ahead)


def epoch_places(n: int, seed: int, epoch: int) -> NDArray[np.float64]:
    """Where an epoch cuts its piece of each of `n` pictures: (n, 2) in [0, 1), by image, not by place in the order."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch], spawn_key=_PLACES_SPAWN_KEY)).random((n, 2))


def epoch_scales(n: int, seed: int, epoch: int) -> NDArray[np.float64]:
    """How large the pieces are that an epoch cuts of each of `n` pictures: (n,) in [0, 1), by image; see `side_of`."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch], spawn_key=_SCALES_SPAWN_KEY)).random(n)


def side_of(scale: float, size: int, short_side: int) -> int:
    """The side of a piece: `size` for scale 0, `short_side` for 1, uniform in its logarithm between them.

    Of a picture whose short side is less than `size` it is that side.
    """
    return round(size * (short_side / size) ** scale) if short_side > size else short_side


def cut_piece(picture: Pixels, size: int, place: NDArray[np.float64], scale: float | None = None) -> Pixels:
    """The piece (3, size, size) of a picture (3, H, W) at `place`, of `side_of(scale, …)` pixels; see `Pieces`.

    Without a scale it has `size` pixels; of a picture whose short side is less, it is as large as that side. Where it
    is not `size` it is resized, antialiased.
    """
    side = side_of(scale or 0.0, size, min(picture.shape[1:]))
    top, left = (int(at * (length - side + 1)) for at, length in zip(place, picture.shape[1:], strict=True))
    piece = picture[:, top : top + side, left : left + side]
    if side == size:
        return piece
    return resize(np.ascontiguousarray(piece.transpose(1, 2, 0)), size, size).transpose(2, 0, 1)
