"""Principal components of vectors that arrive in batches, in bounded memory.

Ross, Lim, Lin and Yang, "Incremental learning for robust visual tracking", IJCV 2008: the components so far and the new
batch are decomposed together. The Gram matrix of the rows replaces the SVD, because vectors have far more dimensions
than there are rows at a time.
"""

import numpy as np
from numpy.typing import NDArray

_RELATIVE_TOLERANCE = 1e-10  # of the largest component's variance: below is rounding error

Vectors = NDArray[np.float64]


class StreamingPCA:
    """The mean, the first `rank` principal components, and every vector's scores on them.

    Smaller components are dropped batch by batch, so the last of those kept are exact only if `rank` suffices for all
    of them. Memory holds 2·`rank` + 2 batches of vectors, and `rank` floats per vector for its scores.
    """

    def __init__(self, rank: int) -> None:
        """Begin without vectors."""
        self.rank = rank
        self.count = 0
        self.mean = np.zeros(0)  # (D,)
        self.std = np.zeros(0)  # (K,) along each component, with divisor `count`
        self.components = np.zeros((0, 0))  # (K, D), orthonormal rows
        self.variance = 0.0  # summed over all D dimensions, within and beyond the components
        self._scores: list[NDArray[np.float32]] = []  # per batch, on the components of that time
        self._updates: list[tuple[Vectors, Vectors]] = []  # per batch: the map of earlier scores to those of that time

    def add(self, batch: NDArray[np.floating]) -> None:
        """Add vectors (n, D)."""
        rows = batch.astype(np.float64)
        count, batch_mean = len(rows), rows.mean(axis=0)
        if not self.count:
            self.mean, self.components = np.zeros_like(batch_mean), np.zeros((0, len(batch_mean)))
        total = self.count + count
        shift = batch_mean - self.mean if self.count else np.zeros_like(batch_mean)
        mean = self.mean + shift * (count / total) if self.count else batch_mean
        rows -= batch_mean
        between = np.sqrt(self.count * count / total) * shift  # the variance between the two means, as a row
        stacked = np.concatenate([self.components * (self.std * np.sqrt(self.count))[:, None], rows, between[None]])
        self.variance = (self.variance * self.count + (rows**2).sum() + (between**2).sum()) / total
        squares, left = np.linalg.eigh(stacked @ stacked.T)
        squares, left = squares[::-1][: self.rank], left[:, ::-1][:, : self.rank]
        kept = squares > _RELATIVE_TOLERANCE * max(squares[0], np.finfo(float).tiny)
        singular_values = np.sqrt(squares[kept])
        components = (left[:, kept] / singular_values).T @ stacked
        # The sign of an eigenvector is arbitrary: the largest entry is made positive, for the same result everywhere.
        components *= np.sign(components[np.arange(len(components)), np.abs(components).argmax(axis=1)])[:, None]
        self._updates.append((self.components @ components.T, (self.mean - mean) @ components.T))
        self._scores.append(((rows + (batch_mean - mean)) @ components.T).astype(np.float32))
        self.count, self.mean, self.components = total, mean, components
        self.std = singular_values / np.sqrt(total)

    def scores(self) -> NDArray[np.float32]:
        """Return every vector's scores (N, K), in the order in which they were added."""
        found: list[NDArray[np.float32]] = []
        rotation, offset = np.eye(len(self.components)), np.zeros(len(self.components))
        for scores, (rotation_before, offset_before) in list(zip(self._scores, self._updates, strict=True))[::-1]:
            found.append((scores @ rotation + offset).astype(np.float32))
            rotation, offset = rotation_before @ rotation, offset_before @ rotation + offset
        return np.concatenate(found[::-1])
