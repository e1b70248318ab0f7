"""The matrices of Winograd's convolutions, in NumPy.

Winograd, "Arithmetic complexity of computations" (1980); Lavin and Gray, "Fast algorithms for convolutional neural
networks", CVPR 2016. A tile of m×m outputs takes (m + r - 1)² products per pair of channels instead of m²·r².
"""

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

# Where the polynomials behind tile and filter are evaluated, by their number; the last point is infinity.
# Small points of unlike size keep the rounding near that of plain float32.
_POINTS = {
    3: (0.0, 1.0),
    5: (0.0, 1.0, -1.0, 0.5),
    6: (0.0, 1.0, -1.0, 0.5, -2.0),
    7: (0.0, 1.0, -1.0, 0.5, -0.5, 2.0),
    8: (0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0),
}
# At the point 1 a polynomial is the sum of its coefficients: a bias added there reaches all outputs alike.
ONE = 1


def matrices(tile: int, filter_side: int) -> tuple[Matrix, Matrix, Matrix]:
    """The matrices that transform a line of inputs (n, n) and of a filter (n, r), and back to outputs (m, n).

    Toom and Cook's multiplication of polynomials, transposed: with V(k) the powers 0 to k - 1 of the points, outputs
    are V(m)ᵀ·[(V(r)·filter) ∘ (V(n)⁻ᵀ·inputs)]. Each row of the input's matrix is scaled to 1, the filter's inversely.
    """
    count = tile + filter_side - 1
    inputs = np.linalg.inv(_powers(count, count)).T
    scale = np.abs(inputs).max(axis=1, keepdims=True)
    return inputs / scale, _powers(count, filter_side) * scale, _powers(count, tile).T


def _powers(points: int, count: int) -> Matrix:
    """Powers 0 to count - 1 of each of so many points; of infinity only the highest counts."""
    powers = np.zeros((points, count))
    powers[:-1] = np.array(_POINTS[points])[:, None] ** np.arange(count)
    powers[-1, -1] = 1
    return powers
