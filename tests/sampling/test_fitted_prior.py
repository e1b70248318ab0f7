"""Fitted priors: draws, whitening, statistics and the file."""

import numpy as np
import pytest
import torch

from aecli.errors import CheckpointError, DataError
from aecli.runs.checkpoints import load
from aecli.sampling.fitted_prior import PriorFit, load_fitted
from tests.support.trained import rewrite
from tests.support.vectors import vectors


def fitted(latents, log_variances=None, batch=50):
    fit = PriorFit()
    for start in range(0, len(latents), batch):
        part = None if log_variances is None else log_variances[start : start + batch]
        fit.add(latents[start : start + batch].astype(np.float32), part)
    return fit.finish()


@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
def test_draws_have_the_latents_mean_and_covariance(kind):
    latents = vectors(6, 600, 5, 30)
    prior = fitted(latents)
    drawn = prior.unwhiten(np.stack([prior.sample(kind, 1.0, 0, index) for index in range(6000)]))
    scale = latents.std(axis=0).max()
    assert drawn.mean(axis=0) == pytest.approx(latents.mean(axis=0), abs=0.06 * scale)
    assert np.cov(drawn.T) == pytest.approx(np.cov(latents.T), abs=0.12 * scale**2)
    assert prior.explained_variance_ratio == pytest.approx(1)


def test_a_draw_depends_on_seed_and_index_alone_and_temperature_scales_it():
    prior = fitted(vectors(7, 300, 5, 30))
    assert np.array_equal(prior.sample("gaussian", 1.0, 3, 11), prior.sample("gaussian", 1.0, 3, 11))
    assert not np.array_equal(prior.sample("gaussian", 1.0, 3, 11), prior.sample("gaussian", 1.0, 3, 12))
    assert not np.array_equal(prior.sample("gaussian", 1.0, 4, 11), prior.sample("gaussian", 1.0, 3, 11))
    assert prior.sample("gaussian", 0.5, 3, 11) == pytest.approx(0.5 * prior.sample("gaussian", 1.0, 3, 11))
    assert prior.unwhiten(prior.sample("gaussian", 0.0, 3, 11)[None])[0] == pytest.approx(prior.mean)


def test_unwhiten_inverts_whiten_within_the_space():
    latents = vectors(8, 300, 5, 30).astype(np.float32)
    prior = fitted(latents)
    assert prior.unwhiten(prior.whiten(latents)) == pytest.approx(latents, abs=1e-3)


def test_statistics_measure_the_divergence_from_n_0_i():
    generator = np.random.default_rng(9)
    deviation = 0.6  # of the posterior; with means of variance 1 - 0.36 the latents are N(0, I)
    means = np.sqrt(1 - deviation**2) * generator.standard_normal((4000, 24))
    log_variances = np.full(means.shape, 2 * np.log(deviation), np.float32)
    near = fitted(means, log_variances).statistics
    assert near.posterior_std == pytest.approx(deviation, rel=1e-5)
    assert near.latent_std == pytest.approx(0.8, rel=0.02)
    assert near.divergence == pytest.approx(0, abs=0.01)
    # Of N(0, s²) from N(0, 1): ½(s² - 1 - ln s²), by a closed form.
    far = fitted(3 * generator.standard_normal((4000, 24)), None).statistics
    assert far.posterior_std is None
    assert far.divergence == pytest.approx(0.5 * (9 - 1 - np.log(9)), rel=0.03)


def test_constant_latents_are_refused():
    fit = PriorFit()
    fit.add(np.ones((20, 6), np.float32), None)
    with pytest.raises(DataError, match="the same"):
        fit.finish()


def test_save_and_load_round_trip(tmp_path):
    prior = fitted(vectors(10, 300, 5, 30))
    prior.save(tmp_path / "prior.safetensors", {"autoencoder": "abc"})
    loaded, document = load_fitted(tmp_path / "prior.safetensors", 30)
    assert document["autoencoder"] == "abc"
    for kind in ("gaussian", "mixture"):
        assert np.array_equal(loaded.sample(kind, 1.0, 1, 2), prior.sample(kind, 1.0, 1, 2))
    assert loaded.statistics == prior.statistics and np.array_equal(loaded.components, prior.components)


@pytest.mark.parametrize(
    "damage",
    [
        {"spread": None}, {"spread": {"means": 1.0}}, {"spread": {"posterior": "x", "means": 1.0, "divergence": 1.0}},
        {"count": -1}, {"share": None},
    ],
    ids=str,
)  # fmt: skip
def test_damage_of_the_document_is_reported(tmp_path, damage):
    path = tmp_path / "prior.safetensors"
    fitted(vectors(10, 300, 5, 30)).save(path, {})
    rewrite(path, lambda document: {**document, **damage})
    with pytest.raises(CheckpointError, match="prior.safetensors"):
        load_fitted(path, 30)


@pytest.mark.parametrize(
    "damage",
    [
        lambda tensors: tensors.pop("mean"),
        lambda tensors: tensors.update(mean=torch.zeros(29)),
        lambda tensors: tensors.update(deviations=torch.zeros(5)),
        lambda tensors: tensors.update(deviations=torch.full((5,), torch.nan)),
        lambda tensors: tensors.update({"mixture.weights": torch.zeros_like(tensors["mixture.weights"])}),
        lambda tensors: tensors.update({"mixture.factors": torch.zeros(1)}),
        lambda tensors: tensors.update(mean=torch.zeros(30, dtype=torch.int64)),
        lambda tensors: tensors.update(mean=torch.zeros(30, dtype=torch.bfloat16)),
        lambda tensors: tensors.update(components=torch.zeros(())),
        lambda tensors: tensors.update({"mixture.means": torch.zeros(())}),
    ],
)
def test_damage_of_tensors_is_reported(tmp_path, damage):
    path = tmp_path / "prior.safetensors"
    fitted(vectors(10, 300, 5, 30)).save(path, {})
    load_fitted(path, 30)
    tensors, _ = load(path)
    damage(tensors)
    rewrite(path, lambda document: document, tensors)
    with pytest.raises(CheckpointError, match="prior.safetensors"):
        load_fitted(path, 30)
