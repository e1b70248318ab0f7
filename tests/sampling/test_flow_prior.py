"""`aecli sample --prior flow`: which flow is found, and the samples that it makes."""

import numpy as np
import pytest
import torch

from aecli.configs import SampleConfig
from aecli.errors import CheckpointError
from aecli.inference.loaded_model import load_model as load_autoencoder
from aecli.progress import Notice, ignore
from aecli.runs.checkpoints import load_model
from aecli.sampling.latent_prior import sample_noise
from aecli.sampling.prior_choice import choose_prior
from tests.support.flows import TRAIN_PRIOR
from tests.support.trained import fails, ok, png, pngs


def test_samples_are_those_of_the_flow(own):
    ok(*TRAIN_PRIOR)
    sample = ["sample", "--model", "vae", "--prior", "flow", "--steps", "6", "--seed", "2", "--guidance", "1.5"]
    ok(*sample, "--n", "3", "--out", "three")
    ok(*sample, "--n", "18", "--out", "many")
    for name in pngs(own / "three"):
        assert (own / f"three/{name}.png").read_bytes() == (own / f"many/{name}.png").read_bytes()
    flow, _ = load_model(own / "runs/prior/model.safetensors")
    loaded = load_autoencoder("vae", own / "runs")
    with torch.no_grad():
        noise = torch.stack([sample_noise((4, 1, 1), 2, index) for index in range(3)])
        by_hand = loaded.decode(flow.unwhiten(flow.sample(noise, 6, guidance=1.5))).permute(0, 2, 3, 1).numpy()
    for index in range(3):
        assert np.abs(png(own / f"three/{index:06d}.png").astype(int) - by_hand[index]).max() <= 1


def test_without_a_class_guidance_needs_a_flow_that_began_as_a_gaussian(own):
    sample = ["sample", "--model", "vae", "--guidance", "2"]
    assert "--guidance 2" in fails(2, *sample, "--prior", "mixture")
    assert "--guidance 2" in fails(2, *sample)  # there is no flow yet
    ok(*TRAIN_PRIOR, "-o", "base=none")
    assert "base=gaussian" in fails(2, *sample)
    assert "base=gaussian" in fails(2, *sample, "--prior", "flow")


def test_auto_uses_a_flow_if_there_is_one_and_reports_it(own):
    ok(*TRAIN_PRIOR)
    reports = []
    loaded = load_autoencoder("vae", own / "runs")
    chosen = choose_prior(loaded, SampleConfig("ae", "auto", runs=own / "runs"), reports.append)
    assert chosen.name == "flow" and chosen.flow_steps == 50
    assert [type(report) for report in reports] == [Notice] and "runs/prior" in reports[0].text
    config = SampleConfig("ae", "auto", runs=own / "runs")
    other = choose_prior(load_autoencoder("ae", own / "runs"), config, reports.append)
    assert other.name == "mixture"


def test_a_flow_beside_the_model_is_found_outside_runs(own):
    ok(*TRAIN_PRIOR)
    loaded = load_autoencoder("runs/vae", own / "runs")
    assert choose_prior(loaded, SampleConfig("ae", "flow", runs=own / "elsewhere"), ignore).trained is not None


def test_temperature_scales_the_noise(own):
    ok(*TRAIN_PRIOR)
    loaded = load_autoencoder("vae", own / "runs")
    still = choose_prior(loaded, SampleConfig("ae", "flow", temperature=0.0, runs=own / "runs"), ignore)
    drawn = still.sample(range(3))
    assert drawn[0].equal(drawn[1]) and drawn[1].equal(drawn[2])


def test_damaged_weights_of_a_flow_are_reported(own):
    ok(*TRAIN_PRIOR)
    (own / "runs/prior/model.safetensors").write_bytes(b"damaged")
    assert "runs/prior/model.safetensors" in fails(1, "sample", "--model", "vae", "--prior", "flow")
    with pytest.raises(CheckpointError):
        load_model(own / "runs/prior/model.safetensors")
