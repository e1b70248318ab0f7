"""Distances between sets of vectors by their definitions: loops over vectors, and vectors that are really left out."""

import numpy as np
from scipy.linalg import sqrtm


def kernel_distance(real, fake):
    """Gretton et al. 2012, equation 3, with the kernel of Bińkowski et al. 2018."""

    def kernel(x, y):
        return (np.dot(x, y) / len(x) + 1) ** 3

    n, m = len(real), len(fake)
    within_real = sum(kernel(real[i], real[j]) for i in range(n) for j in range(n) if i != j)
    within_fake = sum(kernel(fake[i], fake[j]) for i in range(m) for j in range(m) if i != j)
    across = sum(kernel(x, y) for x in real for y in fake)
    return within_real / (n * (n - 1)) + within_fake / (m * (m - 1)) - 2 * across / (n * m)


def jackknife_variance(real, fake):
    """The variance of that distance: of each set, (n - 1)/n times the squares of the values less their mean, summed."""
    variance = 0.0
    for values in (
        [kernel_distance(np.delete(real, i, axis=0), fake) for i in range(len(real))],
        [kernel_distance(real, np.delete(fake, j, axis=0)) for j in range(len(fake))],
    ):
        variance += (len(values) - 1) / len(values) * sum((value - np.mean(values)) ** 2 for value in values)
    return variance


def jackknife_variance_of_pairs(real, fake):
    """The same where vectors of both sets belong together, and are left out together."""
    n = len(real)
    values = [kernel_distance(np.delete(real, i, axis=0), np.delete(fake, i, axis=0)) for i in range(n)]
    return (n - 1) / n * sum((value - np.mean(values)) ** 2 for value in values)


def frechet_distance(real, fake):
    """Heusel et al. 2017, equation 6, by the matrix root itself."""
    one, other = np.cov(real.T), np.cov(fake.T)
    shift = real.mean(axis=0) - fake.mean(axis=0)
    return shift @ shift + np.trace(one + other - 2 * sqrtm(one @ other).real)


def manifold(real, fake, k):
    """Naeem et al. 2020, equations 1 to 3 and 5: precision, recall, density, coverage."""

    def distance(x, y):
        return np.sqrt(((x - y) ** 2).sum())

    def radius(x, own, place):
        return sorted(distance(x, y) for other, y in enumerate(own) if other != place)[k - 1]

    real_radii = [radius(x, real, i) for i, x in enumerate(real)]
    fake_radii = [radius(y, fake, j) for j, y in enumerate(fake)]
    around_fake = [sum(distance(x, y) < r for x, r in zip(real, real_radii, strict=True)) for y in fake]
    recalled = [any(distance(x, y) < r for y, r in zip(fake, fake_radii, strict=True)) for x in real]
    covered = [min(distance(x, y) for y in fake) < r for x, r in zip(real, real_radii, strict=True)]
    return np.mean([count > 0 for count in around_fake]), np.mean(recalled), np.mean(around_fake) / k, np.mean(covered)
