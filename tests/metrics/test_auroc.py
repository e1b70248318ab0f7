import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from aecli.metrics.auroc import auroc


@pytest.mark.parametrize("levels", [3, 1000])
def test_the_area_is_scikit_learns_and_the_count_of_pairs(levels):
    generator = np.random.default_rng(levels)
    normal = generator.integers(0, levels, 40).astype(float)
    anomalous = generator.integers(levels // 4, levels + levels // 4, 23).astype(float)
    found = auroc(normal, anomalous)
    labels = np.repeat([0, 1], [len(normal), len(anomalous)])
    assert found.value == pytest.approx(roc_auc_score(labels, np.concatenate([normal, anomalous])), rel=1e-12)
    pairs = [1.0 if b > a else 0.5 if a == b else 0.0 for a in normal for b in anomalous]
    assert found.value == pytest.approx(np.mean(pairs), rel=1e-12)
    assert (found.normal, found.anomalous) == (40, 23)
    assert found.ci95[0] < found.value < found.ci95[1]
    assert auroc(anomalous, normal).value == pytest.approx(1 - found.value)


def test_the_interval_is_a_bootstraps():
    generator = np.random.default_rng(0)
    normal, anomalous = generator.normal(0, 1, 60), generator.normal(1, 1, 50)
    low, high = auroc(normal, anomalous).ci95
    areas = []
    for _ in range(800):
        one, other = generator.choice(normal, 60), generator.choice(anomalous, 50)
        areas.append((one[:, None] < other).mean() + (one[:, None] == other).mean() / 2)
    assert (low, high) == pytest.approx(np.quantile(areas, [0.025, 0.975]), abs=0.02)


def test_groups_apart_have_an_area_of_one_and_an_empty_one_none():
    assert auroc(np.zeros(3), np.ones(2)).value == 1 and auroc(np.zeros(3), np.zeros(2)).value == 0.5
    with pytest.raises(ValueError, match="both groups"):
        auroc(np.zeros(3), np.zeros(0))
