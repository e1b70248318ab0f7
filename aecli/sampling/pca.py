"""Principal components of vectors that come by the batch, in bounded memory.

Ross, Lim, Lin and Yang, "Incremental learning for robust visual tracking", IJCV 2008: what is known so far and the new
batch are decomposed together. The products of rows stand in for the singular values, since there are far more numbers
in a vector than vectors at a time.
"""

import numpy as np
from numpy.typing import NDArray

_LEAST_SHARE = 1e-10  # of the largest component's variance: what is below is rounding

Vectors = NDArray[np.float64]


class StreamingPCA:
    """The mean, the first `rank` principal components, and every vector's scores on them.

    Components that are not among the first are dropped as the batches come, so the last of those kept are exact only if
    `rank` suffices for all. Memory holds 2·`rank` + 2 batches of vectors, and `rank` numbers a vector for its scores.
    """

    def __init__(self, rank: int) -> None:
        """Begin with nothing."""
        self.rank = rank
        self.count = 0
        self.mean = np.zeros(0)
        self.deviations = np.zeros(0)  # along each component, with divisor `count`
        self.components = np.zeros((0, 0))  # (K, D), orthonormal rows
        self.variance = 0.0  # of all numbers together, in and beyond the components
        self._scores: list[NDArray[np.float32]] = []  # by batch, of the components at that time
        self._turns: list[tuple[Vectors, Vectors]] = []  # and how they became those after the next

    def add(self, batch: NDArray[np.floating]) -> None:
        """Take in vectors (n, D)."""
        rows = batch.astype(np.float64)
        count, mean = len(rows), rows.mean(axis=0)
        if not self.count:
            self.mean, self.components = np.zeros_like(mean), np.zeros((0, len(mean)))
        total = self.count + count
        shift = mean - self.mean if self.count else np.zeros_like(mean)
        moved = self.mean + shift * (count / total) if self.count else mean
        rows -= mean
        spread = np.sqrt(self.count * count / total) * shift
        stacked = np.concatenate([self.components * (self.deviations * np.sqrt(self.count))[:, None], rows,
                                  spread[None]])  # fmt: skip
        self.variance = (self.variance * self.count + (rows**2).sum() + (spread**2).sum()) / total
        squares, left = np.linalg.eigh(stacked @ stacked.T)
        squares, left = squares[::-1][: self.rank], left[:, ::-1][:, : self.rank]
        kept = squares > _LEAST_SHARE * max(squares[0], np.finfo(float).tiny)
        lengths = np.sqrt(squares[kept])
        components = (left[:, kept] / lengths).T @ stacked
        # An eigenvector has no sign of its own: its largest part is made positive, so that it is the same everywhere.
        components *= np.sign(components[np.arange(len(components)), np.abs(components).argmax(axis=1)])[:, None]
        self._turns.append((self.components @ components.T, (self.mean - moved) @ components.T))
        self._scores.append(((rows + (mean - moved)) @ components.T).astype(np.float32))
        self.count, self.mean, self.components = total, moved, components
        self.deviations = lengths / np.sqrt(total)

    def scores(self) -> NDArray[np.float32]:
        """Return each vector's scores (N, K), in the order in which they came."""
        turned: list[NDArray[np.float32]] = []
        turn, offset = np.eye(len(self.components)), np.zeros(len(self.components))
        for scores, (turn_before, offset_before) in zip(reversed(self._scores), reversed(self._turns), strict=True):
            turned.append((scores @ turn + offset).astype(np.float32))
            turn, offset = turn_before @ turn, offset_before @ turn + offset
        return np.concatenate(turned[::-1])
