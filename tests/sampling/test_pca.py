"""Principal components of a stream, against scikit-learn and singular values."""

import numpy as np
import pytest
from sklearn.decomposition import IncrementalPCA

from aecli.sampling.pca import StreamingPCA
from tests.support.vectors import vectors


def test_with_sufficient_rank_the_components_are_exact():
    whole = vectors(0, 300, 40, 700)
    pca = StreamingPCA(50)
    for start in range(0, 300, 37):
        pca.add(whole[start : start + 37].astype(np.float32))
    centred = whole - whole.mean(axis=0)
    lengths = np.linalg.svd(centred, compute_uv=False)[:40]
    assert pca.mean == pytest.approx(whole.mean(axis=0), abs=1e-5)
    assert pca.std == pytest.approx(lengths / np.sqrt(300), rel=1e-6)  # 40, the 10 of rounding left out
    assert pca.components @ pca.components.T == pytest.approx(np.eye(40), abs=1e-9)
    assert pca.scores() @ pca.components + pca.mean == pytest.approx(whole, abs=1e-3)
    assert pca.variance == pytest.approx((centred**2).sum() / 300, rel=1e-6)


def test_with_a_smaller_rank_they_equal_scikit_learns():
    whole = vectors(1, 296, 40, 300)
    ours, theirs = StreamingPCA(20), IncrementalPCA(20)
    for start in range(0, 296, 37):
        ours.add(whole[start : start + 37])
        theirs.partial_fit(whole[start : start + 37])
    assert ours.std == pytest.approx(theirs.singular_values_ / np.sqrt(296), rel=1e-9)
    alike = np.abs(np.einsum("kd,kd->k", ours.components, theirs.components_))
    assert alike == pytest.approx(1, abs=1e-9)


def test_scores_of_earlier_batches_follow_the_components():
    whole = vectors(2, 200, 12, 90)
    pca = StreamingPCA(12)
    for start in range(0, 200, 10):
        pca.add(whole[start : start + 10])
    assert pca.scores() == pytest.approx((whole - pca.mean) @ pca.components.T, abs=1e-3)


def test_memory_does_not_grow_with_the_vectors():
    pca = StreamingPCA(4)
    for seed in range(30):
        pca.add(vectors(seed, 8, 8, 50))
        assert pca.components.shape == (4, 50)
    assert pca.count == 240 and pca.scores().shape == (240, 4)
