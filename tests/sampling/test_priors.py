"""Priors fitted to latents: against scikit-learn, singular values and known mixtures; and `aecli sample` with them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.decomposition import IncrementalPCA

from aecli.configs import SampleConfig
from aecli.errors import CheckpointError, ConfigError, DataError, ModelError
from aecli.inference.loaded_model import load_model
from aecli.progress import Notice, ignore
from aecli.runs.checkpoints import load
from aecli.sampling import mixture as mixtures
from aecli.sampling.fitted_prior import FittedPrior, PriorFit, load_fitted
from aecli.sampling.mixture import Mixture, fit_mixture
from aecli.sampling.pca import StreamingPCA
from aecli.sampling.prior_choice import choose_prior, sample_noise
from aecli.sampling.sample import sample
from tests.support.trained import NAMES, SIZE, TINY, TRAIN, VAL, fails, invoke, ok, ok_json, png, pngs, rewrite


def vectors(seed, count, rank, numbers):
    """Vectors of that rank around a mean that is far from 0, with deviations that fall."""
    generator = np.random.default_rng(seed)
    scores = generator.standard_normal((count, rank)) * np.linspace(5, 0.5, rank)
    return scores @ generator.standard_normal((rank, numbers)) + 3 * generator.standard_normal(numbers)


# Principal components


def test_with_rank_enough_the_components_are_those_of_the_whole():
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


def test_with_a_smaller_rank_they_are_scikit_learns():
    whole = vectors(1, 296, 40, 300)
    ours, theirs = StreamingPCA(20), IncrementalPCA(20)
    for start in range(0, 296, 37):
        ours.add(whole[start : start + 37])
        theirs.partial_fit(whole[start : start + 37])
    assert ours.std == pytest.approx(theirs.singular_values_ / np.sqrt(296), rel=1e-9)
    alike = np.abs(np.einsum("kd,kd->k", ours.components, theirs.components_))
    assert alike == pytest.approx(1, abs=1e-9)


def test_scores_follow_the_components_as_they_turn():
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


# Mixtures


def clusters(count=900):
    generator = np.random.default_rng(3)
    centres = np.array([[-1.2, 0], [1.2, 0.4], [0, -1.3]])[generator.integers(3, size=count)]
    pair = centres + 0.15 * generator.standard_normal((count, 2))
    whole = np.column_stack([pair, generator.standard_normal((count, 14))])
    return ((whole - whole.mean(axis=0)) / whole.std(axis=0)).astype(np.float32)


def fitted_mixture(scores):
    *progress, found = fit_mixture(scores)
    assert [done for done, _ in progress] == list(range(len(progress)))
    assert {total for _, total in progress} <= {len(progress)}
    assert isinstance(found, Mixture)
    return found


def test_three_clusters_are_found_by_what_is_held_out():
    found = fitted_mixture(clusters())
    assert found.weights.sum() == pytest.approx(1)
    heavy = found.means[found.weights > 0.05]
    assert len({tuple(np.round(mean[:2])) for mean in heavy}) == 3
    covariance = found.factors @ found.factors.transpose(0, 2, 1)
    assert (np.diagonal(covariance, axis1=1, axis2=2)[:, :2] < 0.1).all()


def test_one_gaussian_is_enough_for_one():
    scores = np.random.default_rng(4).standard_normal((800, 20)).astype(np.float32)
    assert len(fitted_mixture(scores).weights) == 1


def test_a_few_scores_make_a_mixture_too():
    found = fitted_mixture(np.random.default_rng(5).standard_normal((3, 2)).astype(np.float32))
    assert len(found.weights) == 1


def test_no_more_vectors_are_looked_at_than_are_needed(monkeypatch):
    monkeypatch.setattr(mixtures, "_MAX_VECTORS", 400)
    seen = []
    from sklearn.mixture import GaussianMixture

    fit = GaussianMixture.fit
    monkeypatch.setattr(GaussianMixture, "fit", lambda self, rows: (seen.append(len(rows)), fit(self, rows))[1])
    fitted_mixture(clusters(2000))
    assert set(seen) == {320, 400}


# Fitted priors


def fitted(latents, log_variances=None, batch=50):
    fit = PriorFit()
    for start in range(0, len(latents), batch):
        part = None if log_variances is None else log_variances[start : start + batch]
        fit.add(latents[start : start + batch].astype(np.float32), part)
    *_, prior = fit.finish()
    assert isinstance(prior, FittedPrior)
    return prior


@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
def test_draws_have_the_latents_mean_and_covariance(kind):
    latents = vectors(6, 600, 5, 30)
    prior = fitted(latents)
    drawn = prior.unwhiten(np.stack([prior.draw(kind, 1.0, 0, index) for index in range(6000)]))
    scale = latents.std(axis=0).max()
    assert drawn.mean(axis=0) == pytest.approx(latents.mean(axis=0), abs=0.06 * scale)
    assert np.cov(drawn.T) == pytest.approx(np.cov(latents.T), abs=0.12 * scale**2)
    assert prior.explained_variance_ratio == pytest.approx(1)


def test_a_draw_depends_on_seed_and_index_alone_and_temperature_scales_it():
    prior = fitted(vectors(7, 300, 5, 30))
    assert np.array_equal(prior.draw("gaussian", 1.0, 3, 11), prior.draw("gaussian", 1.0, 3, 11))
    assert not np.array_equal(prior.draw("gaussian", 1.0, 3, 11), prior.draw("gaussian", 1.0, 3, 12))
    assert not np.array_equal(prior.draw("gaussian", 1.0, 4, 11), prior.draw("gaussian", 1.0, 3, 11))
    assert prior.draw("gaussian", 0.5, 3, 11) == pytest.approx(0.5 * prior.draw("gaussian", 1.0, 3, 11))
    assert prior.unwhiten(prior.draw("gaussian", 0.0, 3, 11)[None])[0] == pytest.approx(prior.mean)


def test_projection_and_expansion_are_each_others_inverse_within_the_space():
    latents = vectors(8, 300, 5, 30).astype(np.float32)
    prior = fitted(latents)
    assert prior.unwhiten(prior.whiten(latents)) == pytest.approx(latents, abs=1e-3)


def test_the_spread_tells_n_0_i_from_what_is_not():
    generator = np.random.default_rng(9)
    deviation = 0.6  # of the posterior; with means of variance 1 - 0.36 the latents are N(0, I)
    means = np.sqrt(1 - deviation**2) * generator.standard_normal((4000, 24))
    log_variances = np.full(means.shape, 2 * np.log(deviation), np.float32)
    near = fitted(means, log_variances).statistics
    assert near.posterior_std == pytest.approx(deviation, rel=1e-5)
    assert near.latent_std == pytest.approx(0.8, rel=0.02)
    assert near.divergence == pytest.approx(0, abs=0.01) and not near.is_far
    # Of N(0, s²) from N(0, 1): ½(s² - 1 - ln s²), by a closed form.
    far = fitted(3 * generator.standard_normal((4000, 24)), None).statistics
    assert far.posterior_std is None
    assert far.divergence == pytest.approx(0.5 * (9 - 1 - np.log(9)), rel=0.03) and far.is_far


def test_latents_that_do_not_vary_are_told():
    fit = PriorFit()
    fit.add(np.ones((20, 6), np.float32), None)
    with pytest.raises(DataError, match="the same"):
        list(fit.finish())


# The file


def test_what_is_saved_is_what_is_loaded(tmp_path):
    prior = fitted(vectors(10, 300, 5, 30))
    prior.save(tmp_path / "prior.safetensors", {"autoencoder": "abc"})
    loaded, document = load_fitted(tmp_path / "prior.safetensors", 30)
    assert document["autoencoder"] == "abc"
    for kind in ("gaussian", "mixture"):
        assert np.array_equal(loaded.draw(kind, 1.0, 1, 2), prior.draw(kind, 1.0, 1, 2))
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
def test_damage_is_told(tmp_path, damage):
    path = tmp_path / "prior.safetensors"
    fitted(vectors(10, 300, 5, 30)).save(path, {})
    load_fitted(path, 30)
    tensors, _ = load(path)
    damage(tensors)
    rewrite(path, lambda document: document, tensors)
    with pytest.raises(CheckpointError, match="prior.safetensors"):
        load_fitted(path, 30)


# aecli sample


def notices(*args):
    result = invoke(*args)
    assert result.exit_code == 0, result.output
    return [line.removeprefix("Note: ") for line in result.stderr.splitlines() if line.startswith("Note: ")]


def test_auto_fits_a_mixture_once_and_says_so(own):
    said = ["sample", "--model", "vae", "--n", "2", "--out"]
    first, second = notices(*said, "a.png"), notices(*said, "b.png")
    assert first == second and len(first) == 1
    assert "fitted to the latents of 9 images" in first[0]
    assert (own / "a.png").read_bytes() == (own / "b.png").read_bytes()
    kept = load_file(own / "runs/vae/prior.safetensors")
    assert kept["mean"].shape == (64 * (SIZE // 32) ** 2,)
    assert ok_json("sample", "--model", "vae", "--n", "2", "--out", "a.png") == {
        "out": "a.png", "n": 2, "prior": "mixture",
    }  # fmt: skip


def test_a_prior_is_fitted_to_the_training_images_alone(own):
    ok("sample", "--model", "vae", "--n", "1", "--prior", "gaussian", "--quiet")
    loaded = load_model("vae", own / "runs")
    ok("reconstruct", "--model", "vae", "--split", "train", "--latents", "codes.safetensors", "--out", "r", "--quiet")
    means = load_file(own / "codes.safetensors")["mean"].flatten(1).double().numpy()
    assert len(means) == len(NAMES) - len(VAL)
    kept, _ = load_fitted(own / "runs/vae/prior.safetensors", means.shape[1])
    assert kept.mean == pytest.approx(means.mean(axis=0), abs=1e-5)
    lengths = np.linalg.svd(means - means.mean(axis=0), compute_uv=False)[: len(kept.std)]
    assert kept.std == pytest.approx(lengths / np.sqrt(len(means)), rel=1e-3)
    assert kept.statistics.latent_std == pytest.approx(means.std(axis=0).__pow__(2).mean() ** 0.5, rel=1e-4)
    assert loaded.model.prior_is_normal


@pytest.mark.parametrize("prior", ["normal", "gaussian", "mixture"])
def test_image_i_depends_on_seed_and_i_alone(own, prior):
    for n, out in ((3, "three"), (20, "twenty")):
        ok(
            "sample",
            "--model",
            "vae",
            "--n",
            n,
            "--seed",
            "5",
            "--prior",
            prior,
            "--temperature",
            "20",
            "--out",
            out,
            "-q",
        )
    for name in pngs(own / "three"):
        assert (own / f"three/{name}.png").read_bytes() == (own / f"twenty/{name}.png").read_bytes()
    assert len({(own / f"twenty/{name}.png").read_bytes() for name in pngs(own / "twenty")}) == 20


def test_samples_are_the_decoded_draws(own):
    sample(SampleConfig("ae", prior="gaussian", n=2, seed=3, temperature=0.7, out=own / "out"))
    loaded = load_model("ae", own / "runs")
    prior, _ = load_fitted(own / "runs/ae/prior.safetensors", 64)
    latents = prior.unwhiten(np.stack([prior.draw("gaussian", 0.7, 3, index) for index in range(2)]))
    by_hand = loaded.decode(torch.from_numpy(latents).reshape(2, 64, 1, 1)).permute(0, 2, 3, 1).numpy()
    for index in range(2):
        assert np.abs(png(own / f"out/{index:06d}.png").astype(int) - by_hand[index]).max() <= 1


def test_an_ae_is_sampled_from_what_fits_it_and_not_from_n_0_i(own):
    message = fails(1, "sample", "--model", "ae", "--prior", "normal")
    assert "can't be sampled from N(0, I)" in message
    assert all(word in message for word in ("gaussian", "mixture", "flow"))
    ok("sample", "--model", "ae", "--n", "2")
    assert (own / "samples.png").exists()


def test_n_0_i_is_warned_of_with_its_figure(own, monkeypatch):
    monkeypatch.setattr("aecli.sampling.fitted_prior.FAR", -1)  # two epochs of training take latents nowhere
    (said,) = notices("sample", "--model", "vae", "--n", "2", "--prior", "normal")
    kept, _ = load_fitted(own / "runs/vae/prior.safetensors", 64)
    assert f"standard deviation is {kept.statistics.posterior_std:.2f} instead of 1" in said
    assert "far from N(0, I)" in said and "--prior mixture" in said


def test_n_0_i_is_not_warned_of_where_latents_are_near_it(own, monkeypatch):
    monkeypatch.setattr("aecli.sampling.fitted_prior.FAR", 1e9)
    assert notices("sample", "--model", "vae", "--n", "2", "--prior", "normal") == []


def test_the_images_of_normal_are_decoded_noise(own):
    ok("sample", "--model", "vae", "--n", "1", "--prior", "normal", "--seed", "4", "--out", "out")
    loaded = load_model("vae", own / "runs")
    by_hand = loaded.decode(sample_noise((64, 1, 1), 4, 0)[None])[0].permute(1, 2, 0).numpy()
    assert np.abs(png(own / "out/000000.png").astype(int) - by_hand).max() <= 1


def test_what_is_kept_does_not_depend_on_the_precision_asked_for_first(own):
    kept = []
    for precision in ("bf16", "fp32"):
        ok("sample", "--model", "vae", "--n", "1", "--precision", precision, "--quiet")
        kept.append(load(own / "runs/vae/prior.safetensors"))
        (own / "runs/vae/prior.safetensors").unlink()
    (one, of_one), (other, of_other) = kept
    assert of_one == of_other and one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_other_weights_are_fitted_anew(own):
    ok("sample", "--model", "vae", "--n", "1", "--quiet")
    before = (own / "runs/vae/prior.safetensors").read_bytes()
    shutil.copy(own / "runs/vae/prior.safetensors", own / "runs/ae/prior.safetensors")
    ok("sample", "--model", "ae", "--n", "1", "--quiet")
    assert (own / "runs/ae/prior.safetensors").read_bytes() != before


def test_a_damaged_prior_is_told_and_fitted_anew(own):
    ok("sample", "--model", "vae", "--n", "1", "--out", "a.png", "--quiet")
    (own / "runs/vae/prior.safetensors").write_bytes(b"damaged")
    said = notices("sample", "--model", "vae", "--n", "1", "--out", "b.png")
    assert any("prior.safetensors" in line and "again" in line for line in said)
    assert (own / "a.png").read_bytes() == (own / "b.png").read_bytes()


def test_a_folder_that_cannot_be_written_is_no_hindrance(own, monkeypatch):
    from aecli.errors import OutputError

    def refuse(*_arguments):
        raise OutputError("runs/vae can't be written: Read-only file system")

    monkeypatch.setattr(FittedPrior, "save", refuse)
    said = notices("sample", "--model", "vae", "--n", "1")
    assert any("not stored" in line and "Read-only" in line for line in said)
    assert (own / "samples.png").exists()


def test_a_run_that_goes_on_or_begins_again_keeps_no_old_prior(own):
    ok("sample", "--model", "runs/vae", "--n", "1", "--quiet")

    ok("train", "vae", *TRAIN, "--restart", "--quiet")
    assert not (own / "runs/vae/prior.safetensors").exists()


def test_a_bare_file_is_sampled_from_n_0_i_and_says_what_is_not_known(own):
    shutil.copy("runs/vae/model.safetensors", "bare.safetensors")
    (said,) = notices("sample", "--model", "bare.safetensors", "--n", "1")
    assert "N(0, I)" in said and "no run folder" in said
    assert "no run folder" in fails(1, "sample", "--model", "bare.safetensors", "--prior", "gaussian")
    shutil.copy("runs/ae/model.safetensors", "bare.safetensors")
    assert "no run folder" in fails(1, "sample", "--model", "bare.safetensors")


def test_images_that_cannot_be_read_are_left_out_and_told_and_so_is_that_all_are_gone(own):
    shutil.copytree(own / "images", own / "mine")
    ok("train", "ae", "--data", "mine", "--val-fraction", "0", *TINY, "--out", "run", "--quiet")
    (own / "mine/i1.png").write_bytes(b"no image")
    said = notices("sample", "--model", "run", "--n", "1")
    assert any("i1.png" in line for line in said) and any("11 images" in line for line in said)
    (own / "run/prior.safetensors").unlink()
    shutil.rmtree(own / "mine")
    with pytest.raises(DataError, match="mine"):
        choose_prior(load_model("run", own / "runs"), "auto", ignore, runs=own / "runs")


@pytest.mark.parametrize(
    "wrong",
    [["--prior", "gauss"], ["--prior", "gaussian", "--steps", "5"], ["--steps", "0"], ["--temperature", "-1"]],
)
def test_wrong_use(own, wrong):
    assert wrong[-2] in fails(2, "sample", "--model", "vae", *wrong)


def test_no_flow_is_told_with_the_mend(own):
    assert f"aecli train prior --model {Path('runs/vae')}" in fails(1, "sample", "--model", "vae", "--prior", "flow")
    assert "--steps 5" in fails(2, "sample", "--model", "vae", "--steps", "5")


def test_configs_refuse_what_cannot_be_meant():
    with pytest.raises(ConfigError, match="--prior"):
        SampleConfig("vae", prior="none")
    with pytest.raises(ModelError):
        choose_prior(load_model_of_nothing(), "normal", ignore, runs=Path("runs"))


def load_model_of_nothing():
    from types import SimpleNamespace

    model = SimpleNamespace(prior_is_normal=False, latent_shape=lambda size: (4, 1, 1))
    return SimpleNamespace(model=model, image_size=32, title="AE")


def test_notices_are_one_line_each(own):
    reports = []
    sample(SampleConfig("vae", n=1, out=own / "x.png"), reports.append)
    assert all("\n" not in report.text for report in reports if isinstance(report, Notice))
