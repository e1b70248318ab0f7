"""`aecli sample`: which prior is fitted, stored and drawn from."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from aecli.configs import SampleConfig
from aecli.errors import ConfigError, DataError
from aecli.inference.loaded_model import load_model
from aecli.progress import Notice, ignore
from aecli.runs.checkpoints import load
from aecli.sampling.fitted_prior import FittedPrior, load_fitted
from aecli.sampling.prior_choice import choose_prior
from aecli.sampling.sample import sample
from tests.support.trained import NAMES, SIZE, TINY, TRAIN, VAL, fails, invoke, ok, ok_json, png, pngs


def notices(*args):
    result = invoke(*args)
    assert result.exit_code == 0, result.output
    return [line.removeprefix("Note: ") for line in result.stderr.splitlines() if line.startswith("Note: ")]


def test_auto_fits_a_mixture_once_and_reports_it(own):
    first, second = (notices("sample", "--model", "vae", "--n", "2", "--out", out) for out in ("a.png", "b.png"))
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
    ok("reconstruct", "--model", "vae", "--split", "train", "--latents", "latents.safetensors", "--out", "r", "--quiet")
    means = load_file(own / "latents.safetensors")["mean"].flatten(1).double().numpy()
    assert len(means) == len(NAMES) - len(VAL)
    kept, _ = load_fitted(own / "runs/vae/prior.safetensors", means.shape[1])
    assert kept.mean == pytest.approx(means.mean(axis=0), abs=1e-5)
    lengths = np.linalg.svd(means - means.mean(axis=0), compute_uv=False)[: len(kept.std)]
    assert kept.std == pytest.approx(lengths / np.sqrt(len(means)), rel=1e-3)
    assert kept.statistics.latent_std == pytest.approx(means.std(axis=0).__pow__(2).mean() ** 0.5, rel=1e-4)
    assert loaded.model.prior_is_normal


@pytest.mark.parametrize("prior", ["normal", "gaussian", "mixture"])
def test_image_i_depends_on_seed_and_i_alone(own, prior):
    command = ["sample", "--model", "vae", "--seed", "5", "--prior", prior, "--temperature", "20", "--quiet"]
    ok(*command, "--n", "3", "--out", "three")
    ok(*command, "--n", "20", "--out", "twenty")
    for name in pngs(own / "three"):
        assert (own / f"three/{name}.png").read_bytes() == (own / f"twenty/{name}.png").read_bytes()
    assert len({(own / f"twenty/{name}.png").read_bytes() for name in pngs(own / "twenty")}) == 20


def test_samples_are_the_decoded_draws(own):
    sample(SampleConfig("ae", prior="gaussian", n=2, seed=3, temperature=0.7, out=own / "out"))
    loaded = load_model("ae", own / "runs")
    prior, _ = load_fitted(own / "runs/ae/prior.safetensors", 64)
    latents = prior.unwhiten(np.stack([prior.sample("gaussian", 0.7, 3, index) for index in range(2)]))
    by_hand = loaded.decode(torch.from_numpy(latents).reshape(2, 64, 1, 1)).permute(0, 2, 3, 1).numpy()
    for index in range(2):
        assert np.abs(png(own / f"out/{index:06d}.png").astype(int) - by_hand[index]).max() <= 1


def test_an_ae_is_sampled_from_what_fits_it_and_not_from_n_0_i(own):
    message = fails(1, "sample", "--model", "ae", "--prior", "normal")
    assert "can't be sampled from N(0, I)" in message
    assert all(word in message for word in ("gaussian", "mixture", "flow")) and not (own / "samples.png").exists()
    ok("sample", "--model", "ae", "--n", "2")
    assert (own / "samples.png").exists()


def test_n_0_i_far_from_the_latents_gives_a_notice_with_a_figure(own, monkeypatch):
    command = ["sample", "--model", "vae", "--n", "2", "--prior", "normal"]
    monkeypatch.setattr("aecli.diagnosis.FAR", 1e9)
    assert notices(*command) == []
    monkeypatch.setattr("aecli.diagnosis.FAR", -1)  # two epochs of training take latents nowhere
    (notice,) = (line for line in notices(*command) if "replacing" not in line)
    kept, _ = load_fitted(own / "runs/vae/prior.safetensors", 64)
    assert f"standard deviation is {kept.statistics.posterior_std:.2f} instead of 1" in notice
    assert "N(0, I)" in notice and "--prior mixture" in notice


def test_the_stored_prior_does_not_depend_on_the_precision_of_the_first_command(own):
    kept = []
    for precision in ("bf16", "fp32"):
        ok("sample", "--model", "vae", "--n", "1", "--precision", precision, "--quiet")
        kept.append(load(own / "runs/vae/prior.safetensors"))
        (own / "runs/vae/prior.safetensors").unlink()
    (one, of_one), (other, of_other) = kept
    assert of_one == of_other and one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_other_weights_are_fitted_again(own):
    ok("sample", "--model", "vae", "--n", "1", "--quiet")
    before = (own / "runs/vae/prior.safetensors").read_bytes()
    shutil.copy(own / "runs/vae/prior.safetensors", own / "runs/ae/prior.safetensors")
    ok("sample", "--model", "ae", "--n", "1", "--quiet")
    assert (own / "runs/ae/prior.safetensors").read_bytes() != before


def test_a_damaged_prior_is_reported_and_fitted_again(own):
    ok("sample", "--model", "vae", "--n", "1", "--out", "a.png", "--quiet")
    (own / "runs/vae/prior.safetensors").write_bytes(b"damaged")
    found = notices("sample", "--model", "vae", "--n", "1", "--out", "b.png")
    assert any("prior.safetensors" in line and "again" in line for line in found)
    assert (own / "a.png").read_bytes() == (own / "b.png").read_bytes()


def test_a_prior_that_cannot_be_stored_is_used_all_the_same(own, monkeypatch):
    from aecli.errors import OutputError

    def refuse(*_arguments):
        raise OutputError("runs/vae can't be written: Read-only file system")

    monkeypatch.setattr(FittedPrior, "save", refuse)
    found = notices("sample", "--model", "vae", "--n", "1")
    assert any("not stored" in line and "Read-only" in line for line in found)
    assert (own / "samples.png").exists()


def test_resuming_or_restarting_a_run_drops_its_prior(own):
    ok("sample", "--model", "runs/vae", "--n", "1", "--quiet")
    ok("train", "vae", *TRAIN, "--restart", "--quiet")
    assert not (own / "runs/vae/prior.safetensors").exists()


def test_a_bare_file_is_sampled_from_n_0_i_with_a_notice(own):
    shutil.copy("runs/vae/model.safetensors", "bare.safetensors")
    (notice,) = notices("sample", "--model", "bare.safetensors", "--n", "1")
    assert "N(0, I)" in notice and "no run folder" in notice
    assert "no run folder" in fails(1, "sample", "--model", "bare.safetensors", "--prior", "gaussian")
    shutil.copy("runs/ae/model.safetensors", "bare.safetensors")
    assert "no run folder" in fails(1, "sample", "--model", "bare.safetensors")


def test_unreadable_images_are_left_out_with_a_notice_and_missing_ones_are_an_error(own):
    shutil.copytree(own / "images", own / "mine")
    ok("train", "ae", "--data", "mine", "--val-fraction", "0", *TINY, "--out", "run", "--quiet")
    (own / "mine/i1.png").write_bytes(b"no image")
    found = notices("sample", "--model", "run", "--n", "1")
    assert any("i1.png" in line for line in found) and any("11 images" in line for line in found)
    (own / "run/prior.safetensors").unlink()
    shutil.rmtree(own / "mine")
    with pytest.raises(DataError, match="mine"):
        choose_prior(load_model("run", own / "runs"), SampleConfig("ae", "auto", runs=own / "runs"), ignore)


@pytest.mark.parametrize(
    "wrong",
    [["--prior", "gauss"], ["--prior", "gaussian", "--steps", "5"], ["--steps", "0"], ["--temperature", "-1"]],
)
def test_wrong_use(own, wrong):
    assert wrong[-2] in fails(2, "sample", "--model", "vae", *wrong)


def test_a_missing_flow_is_an_error_with_a_hint(own):
    assert f"aecli train prior --model {Path('runs/vae')}" in fails(1, "sample", "--model", "vae", "--prior", "flow")
    assert "--steps 5" in fails(2, "sample", "--model", "vae", "--steps", "5")


def test_invalid_priors_are_refused_in_python_too():
    with pytest.raises(ConfigError, match="--prior"):
        SampleConfig("vae", prior="none")


def test_notices_are_one_line_each(own):
    reports = []
    sample(SampleConfig("vae", n=1, out=own / "x.png"), reports.append)
    assert all("\n" not in report.text for report in reports if isinstance(report, Notice))
