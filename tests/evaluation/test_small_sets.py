"""What is said of sets of few images, by the number of features and of neighbours."""

import numpy as np
import pytest

from aecli.configs import EvalConfig
from aecli.evaluation.sets import evaluate_sets
from aecli.evaluation.small_sets import LEAST_FOR_MANIFOLD, small_set_notices
from aecli.metrics.distribution_distances import manifold
from aecli.metrics.feature_networks import SetFeatures
from aecli.progress import Notice
from tests.support.images import save_image
from tests.support.paired import crop


def test_a_notice_for_each_kind_of_distance():
    network = SetFeatures("x", "kd-x", "fd-x", "", dim=150, weights_sha256="", compute=lambda images: images, side=8)
    assert list(small_set_notices({"--gt": 1000, "vae": 151}, network)) == []
    (frechet,) = small_set_notices({"--gt": 1000, "vae": 150, "ae": 151}, network)
    assert "fd-x" in frechet and "vae: 150" in frechet and "ae: 151" not in frechet and "kd-x" in frechet
    frechet, precision = small_set_notices({"--gt": LEAST_FOR_MANIFOLD - 1, "vae": 1000}, network)
    assert "precision, recall" in precision and "--gt: 99" in precision and "vae" not in precision


def test_recall_of_half_the_clusters_needs_as_many_images():
    """Samples lack half of 20 clusters: recall says so above the limit, and is near 1 far below it."""
    centres = np.random.default_rng(0).normal(0, 1.2, (20, 32))

    def draw(count, clusters, seed):
        generator = np.random.default_rng(seed)
        return centres[generator.integers(0, clusters, count)] + generator.normal(0, 1, (count, 32))

    recalls = {n: manifold(draw(n, 20, 0), draw(n, 10, 99)).recall for n in (12, 2 * LEAST_FOR_MANIFOLD, 1000)}
    assert recalls[12] > 0.9
    assert recalls[2 * LEAST_FOR_MANIFOLD] == pytest.approx(0.45, abs=0.1)
    assert recalls[1000] == pytest.approx(0.45, abs=0.1)


def test_eval_says_it(tmp_path):
    for index in range(8):
        save_image(tmp_path / f"gt/{index}.png", crop(index))
        save_image(tmp_path / f"new/{index}.png", crop(index + 9))
    heard = []
    config = EvalConfig(str(tmp_path / "gt"), samples=(str(tmp_path / "new"),), features="alex", device="cpu")
    evaluate_sets(config, heard.append)
    notices = [each.text for each in heard if isinstance(each, Notice)]
    assert [text.split()[0] for text in notices] == ["fd-alex", "precision,"]
    assert all("--gt: 8, new: 8" in text for text in notices)
