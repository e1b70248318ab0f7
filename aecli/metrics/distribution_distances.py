"""Distances between two unpaired sets of images, from one feature vector an image.

All take float64 (N, D) and (M, D). Products are computed in blocks of rows: memory grows with N + M, not with N·M.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float64]

NEIGHBOURS = 5
_BLOCK_ROWS = 1024
_Z95 = 1.959963984540054  # 97.5 % quantile of the standard normal distribution


@dataclass(frozen=True)
class Manifold:
    """How well two sets cover each other; in [0, 1] except for density, which has no upper bound."""

    precision: float
    recall: float
    density: float
    coverage: float


def kernel_distance(real: Vectors, fake: Vectors, are_pairs: bool = False) -> tuple[float, tuple[float, float]]:
    """The squared maximum mean discrepancy under the kernel (x·y / D + 1)³, and its 95 % interval.

    The unbiased estimate over all pairs, which may be negative for similar sets (Bińkowski, Sutherland, Arbel and
    Gretton, "Demystifying MMD GANs", ICLR 2018; Gretton et al., "A kernel two-sample test", JMLR 2012). The interval is
    normal, with the jackknife variance of each set (leaving out one vector at a time), or where the sets `are_pairs`,
    of the pairs (leaving out both vectors): the estimate is the same.

    Raises:
        ValueError: fewer than 3 vectors in a set, or pairs of which one is missing.
    """
    _check_sizes(real, fake, 3)
    if are_pairs and len(real) != len(fake):
        raise ValueError(f"expected pairs, got {len(real)} and {len(fake)} vectors")
    n, m = len(real), len(fake)
    (within_real, _), (within_fake, _) = _kernel_sums(real, real), _kernel_sums(fake, fake)
    within_real -= _kernel(np.einsum("nd,nd->n", real, real), real.shape[1])
    within_fake -= _kernel(np.einsum("nd,nd->n", fake, fake), fake.shape[1])
    across_real, across_fake = _kernel_sums(real, fake)
    a, b, c = within_real.sum(), within_fake.sum(), across_real.sum()
    value = float(_discrepancy(a, b, c, n, m))
    # The estimate without one vector: its kernel row leaves the sum within its set twice, the sum across once.
    without_real = _discrepancy(a - 2 * within_real, b, c - across_real, n - 1, m)
    without_fake = _discrepancy(a, b - 2 * within_fake, c - across_fake, n, m - 1)
    variance = (n - 1) * without_real.var() + (m - 1) * without_fake.var()
    if are_pairs:
        own = _kernel(np.einsum("nd,nd->n", real, fake), real.shape[1])
        across = c - across_real - across_fake + own
        variance = (n - 1) * _discrepancy(a - 2 * within_real, b - 2 * within_fake, across, n - 1, n - 1).var()
    half_width = _Z95 * float(np.sqrt(variance))
    return value, (value - half_width, value + half_width)


def frechet_distance(real: Vectors, fake: Vectors) -> float:
    """|μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½), the distance of Gaussians with the sets' means and sample covariances.

    Heusel, Ramsauer, Unterthiner, Nessler and Hochreiter, "GANs trained by a two time-scale update rule converge to a
    local Nash equilibrium", NeurIPS 2017. Biased upwards, more so for smaller sets.

    Raises:
        ValueError: fewer than 2 vectors in a set.
    """
    _check_sizes(real, fake, 2)
    one, other = _covariance(real), _covariance(fake)
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    # Σ₁ Σ₂ has the eigenvalues of root · Σ₂ · root, which is symmetric: they stay real in spite of rounding.
    trace_of_root = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ other @ root), 0)).sum()
    shift = real.mean(axis=0) - fake.mean(axis=0)
    return max(0.0, float(shift @ shift + np.trace(one) + np.trace(other) - 2 * trace_of_root))


def manifold(real: Vectors, fake: Vectors, neighbours: int = NEIGHBOURS) -> Manifold:
    """Precision, recall, density and coverage, from balls around each vector up to its k-th neighbour in its own set.

    Kynkäänniemi, Karras, Laine, Lehtinen and Aila, "Improved precision and recall metric for assessing generative
    models", NeurIPS 2019; Naeem, Oh, Uh, Choi and Yoo, "Reliable fidelity and diversity metrics for generative models",
    ICML 2020.

    Raises:
        ValueError: a set has no more than `neighbours` vectors.
    """
    _check_sizes(real, fake, neighbours + 1)
    real_radii, fake_radii = _radii(real, neighbours), _radii(fake, neighbours)
    counts = np.zeros(len(fake))  # of real balls around each fake
    recalled, covered = np.zeros(len(real), dtype=bool), np.zeros(len(real), dtype=bool)
    for rows, distances in _distances(real, fake):
        inside = distances < real_radii[rows, None]
        counts += inside.sum(axis=0)
        covered[rows] = inside.any(axis=1)
        recalled[rows] = (distances < fake_radii).any(axis=1)
    return Manifold(
        precision=float((counts > 0).mean()),
        recall=float(recalled.mean()),
        density=float(counts.mean()) / neighbours,
        coverage=float(covered.mean()),
    )


def nearest_distances(vectors: Vectors, among: Vectors) -> NDArray[np.float64]:
    """The Euclidean distance (N,) of each vector to the nearest of `among`; 0 for one that is among them.

    Raises:
        ValueError: an empty set.
    """
    _check_sizes(vectors, among, 1)
    nearest = [distances.argmin(axis=1) for _, distances in _distances(vectors, among)]
    # Computed again by subtraction: the expanded square loses digits far from the origin.
    distances: Vectors = np.sqrt(((vectors - among[np.concatenate(nearest)]) ** 2).sum(axis=1))
    return distances


def _check_sizes(one: Vectors, other: Vectors, least: int) -> None:
    if min(len(one), len(other)) < least:
        raise ValueError(f"expected at least {least} vectors in each set, got {len(one)} and {len(other)}")


def _covariance(vectors: Vectors) -> Vectors:
    centred = vectors - vectors.mean(axis=0)
    covariance: Vectors = centred.T @ centred / (len(vectors) - 1)
    return covariance


def _discrepancy(within_real: Any, within_fake: Any, across: Any, n: int, m: int) -> Any:
    """The estimate from the kernel's sums over pairs within and across sets of n and m vectors."""
    return within_real / (n * (n - 1)) + within_fake / (m * (m - 1)) - 2 * across / (n * m)


def _kernel(products: Vectors, dim: int) -> Vectors:
    return (products / dim + 1) ** 3


def _kernel_sums(one: Vectors, other: Vectors) -> tuple[Vectors, Vectors]:
    """Row sums (N,) and column sums (M,) of the kernel matrix of `one` and `other`."""
    rows, columns = [], np.zeros(len(other))
    for start in range(0, len(one), _BLOCK_ROWS):
        values = _kernel(one[start : start + _BLOCK_ROWS] @ other.T, one.shape[1])
        rows.append(values.sum(axis=1))
        columns += values.sum(axis=0)
    return np.concatenate(rows), columns


def _distances(one: Vectors, other: Vectors) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield blocks of rows of `one`, with their Euclidean distances (n, M) to all of `other`."""
    centre = other.mean(axis=0)  # the expanded square below loses digits far from the origin
    one, other = one - centre, other - centre
    squares = np.einsum("nd,nd->n", other, other)
    for start in range(0, len(one), _BLOCK_ROWS):
        rows = slice(start, min(start + _BLOCK_ROWS, len(one)))
        block = one[rows]
        lengths = np.einsum("nd,nd->n", block, block)[:, None] + squares - 2 * (block @ other.T)
        yield rows, np.sqrt(np.maximum(lengths, 0))


def _radii(vectors: Vectors, neighbours: int) -> NDArray[np.float64]:
    """Each vector's distance (N,) to its k-th neighbour in the same set, excluding itself."""
    radii = []
    for rows, distances in _distances(vectors, vectors):
        np.fill_diagonal(distances[:, rows], 0)  # itself sorts first, whatever the rounding
        radii.append(np.partition(distances, neighbours, axis=1)[:, neighbours])
    return np.concatenate(radii)
