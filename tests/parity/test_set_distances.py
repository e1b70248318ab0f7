"""Distances between sets of vectors against their definitions as loops, and torch-fidelity."""

import numpy as np
import pytest
import torch

from aecli.metrics.distribution_distances import frechet_distance, kernel_distance, manifold
from tests.reference import sets as reference


def test_kernel_distance_is_its_definitions(real, fake):
    value, (low, high) = kernel_distance(real, fake)
    assert value == pytest.approx(reference.kernel_distance(real, fake), rel=1e-12)
    deviation = np.sqrt(reference.jackknife_variance(real, fake))
    assert (value - low, high - value) == pytest.approx((1.959964 * deviation,) * 2, rel=1e-6)


def test_the_interval_of_pairs_leaves_out_both(real, fake):
    real = real[:24]
    value, (low, high) = kernel_distance(real, fake, are_pairs=True)
    assert value == kernel_distance(real, fake)[0]
    deviation = np.sqrt(reference.jackknife_variance_of_pairs(real, fake))
    assert (value - low, high - value) == pytest.approx((1.959964 * deviation,) * 2, rel=1e-6)
    with pytest.raises(ValueError, match="expected pairs"):
        kernel_distance(real, fake[1:], are_pairs=True)


def test_kernel_distance_is_torch_fidelitys(real, fake):
    fidelity = pytest.importorskip("torch_fidelity.metric_kid")
    of_one_size = fidelity.polynomial_mmd(real[:24], fake, 3, None, 1)
    assert kernel_distance(real[:24], fake)[0] == pytest.approx(of_one_size, rel=1e-9)


def test_frechet_distance_is_its_definition_and_torch_fidelitys(real, fake):
    found = frechet_distance(real, fake)
    assert found == pytest.approx(reference.frechet_distance(real, fake), rel=1e-9)
    fidelity = pytest.importorskip("torch_fidelity.metric_fid")
    statistics = [fidelity.fid_features_to_statistics(torch.from_numpy(each)) for each in (real, fake)]
    (theirs,) = fidelity.fid_statistics_to_metric(*statistics, verbose=False).values()
    assert found == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_manifold_is_its_definition(real, fake, k):
    found = manifold(real, fake, k)
    figures = (found.precision, found.recall, found.density, found.coverage)
    assert figures == pytest.approx(reference.manifold(real, fake, k), rel=1e-12)
    assert 0 < min(figures) and found.precision < 1
