"""Runs with other objectives and optimizers than the report's: as exact, and as safe."""

import copy
import math
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from aecli.configs.train import ObjectiveConfig
from aecli.errors import CheckpointError, ConfigError, TrainingError
from aecli.models.base import Prediction
from aecli.progress import Notice
from aecli.runs import checkpoints
from aecli.training.discriminator import Discriminator
from aecli.training.events import EpochReport, Finished
from aecli.training.optim import ADAMW_BETAS, as_matrix
from tests.support.objectives import fresh_state
from tests.support.plain_models import build
from tests.support.trained import assert_same_run, rows
from tests.training.test_loop import run

pytestmark = pytest.mark.usefixtures("no_pictures")

EVERYTHING = {
    "pixel_loss": "charbonnier", "perceptual_weight": 0.1, "perceptual_net": "alex", "ssim_weight": 0.1,
    "adversarial_weight": 0.1, "adversarial_start": 5, "adversarial_ramp": 3, "optimizer": "muon", "schedule": "cosine",
    "warmup": 2, "weight_decay": 0.01, "clip_norm": 1.0, "ema": 0.9, "best_by": "lpips",
}  # fmt: skip


def test_with_everything_on_a_run_stopped_anywhere_and_continued_is_the_run_never_stopped(config, tmp_path):
    config = config.replace(**EVERYTHING)
    reports, _ = run(config.replace(out=tmp_path / "whole"))
    parts = config.replace(out=tmp_path / "parts")
    ends = set()
    for stop_after in (1, 3, 4, 2, 5):
        _, end = run(parts, stop_after)
        ends.add((end.epoch, end.batch))
    assert len(ends) == 5
    _, end = run(parts)
    assert isinstance(end, Finished) and end.epochs == 3
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    names = ["before-adversarial.safetensors", "model.safetensors", "last.safetensors"]
    for name in names:
        whole, other = (load_file(tmp_path / folder / name) for folder in ("whole", "parts"))
        assert all(torch.equal(value, other[key]) for key, value in whole.items())
    saved = load_file(tmp_path / "whole" / "last.safetensors")
    assert {key.split(".")[1] for key in saved if key.startswith("optimizer.")} >= {"exp_avg", "momentum_buffer"}
    assert float(saved["critic.discriminator.model.real_mean"]) != 0
    epochs = [report.row for report in reports if isinstance(report, EpochReport)]
    names = ("recon", "kl", "perceptual", "ssim_loss", "adversarial", "discriminator")
    assert [row["train_adversarial"] is None for row in epochs] == [True, False, False]
    assert all(math.isfinite(epochs[-1][f"train_{name}"]) for name in names)
    written = rows(tmp_path / "whole")[-1]
    assert all(float(written[f"train_{name}"]) == epochs[-1][f"train_{name}"] for name in names)


def test_the_best_from_before_the_adversarial_loss_is_kept(config, tmp_path):
    config = config.replace(adversarial_weight=0.1, adversarial_start=7, epochs=4, out=tmp_path / "mine", lr=1e-3)
    reports, end = run(config)
    per_epoch = 3
    losses = [report.row["val_loss"] for report in reports if isinstance(report, EpochReport)]
    before = checkpoints.read_document(tmp_path / "mine" / "before-adversarial.safetensors")
    crossing = 7 // per_epoch  # epochs that ended before it
    assert before["epoch"] == 1 + losses[:crossing].index(min(losses[:crossing])) == 1
    after = checkpoints.read_document(tmp_path / "mine" / "model.safetensors")
    assert after["epoch"] == end.best_epoch == 1 + crossing + losses[crossing:].index(min(losses[crossing:]))


def test_before_the_adversarial_loss_the_steps_are_those_without(config, tmp_path):
    run(config.replace(epochs=1, out=tmp_path / "without"))
    run(config.replace(epochs=1, adversarial_weight=1.0, adversarial_start=100, out=tmp_path / "with"))
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("without", "with"))
    assert all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize("best_by", ["psnr", "lpips"])
def test_the_best_is_that_of_the_metric_named(config, tmp_path, best_by):
    reports, end = run(config.replace(best_by=best_by, lr=3e-2, out=tmp_path / "mine"))
    values = [report.row[f"val_{best_by}"] for report in reports if isinstance(report, EpochReport)]
    best = max(values) if best_by == "psnr" else min(values)
    assert end.best[f"val_{best_by}"] == best and end.best_epoch == 1 + values.index(best)


def test_a_cosine_is_neither_longer_nor_shorter_than_it_began(config, tmp_path):
    config = config.replace(schedule="cosine", epochs=2)
    run(config)
    for epochs in (1, 3):
        with pytest.raises(CheckpointError, match=f"--epochs {epochs}: .* cosine over 2 epochs"):
            run(config.replace(epochs=epochs))
        with pytest.raises(CheckpointError, match=f"--epochs {epochs}: .* cosine over 2 epochs"):
            run(config.replace(epochs=epochs, out=tmp_path / "runs" / "vae"))
    assert float(rows(tmp_path / "runs" / "vae")[-1]["lr"]) < 0.25 * config.optimization.lr
    run(config.replace(epochs=3, out=tmp_path / "other"))
    assert len(rows(tmp_path / "other")) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"ssim_weight": 0.1, "image_size": 32, "model": "prior", "autoencoder": "vae"},
            "latents, which are no images",
        ),
        ({"best_by": "psnr", "val_fraction": 0.0}, "--best-by psnr: there are no validation images"),
        ({"pixel_loss": "l3"}, "--pixel-loss l3: expected one of mse, l1, charbonnier"),
        ({"clip_norm": 0.0}, "--clip-norm 0.0: expected a number above 0"),
    ],
)
def test_what_makes_no_objective_is_refused_by_its_option(config, tmp_path, options, message):
    if "autoencoder" in options:
        run(config.replace(epochs=1))
    with pytest.raises(ConfigError, match=message):
        run(config.replace(**options))


def test_an_adversarial_loss_that_never_begins_is_said(config):
    reports, _ = run(config.replace(epochs=1, adversarial_weight=0.1, adversarial_start=3))
    assert any("the run has 3 steps" in report.text for report in reports if isinstance(report, Notice))


def test_a_critic_that_is_not_finite_stops_the_run_by_its_name(config, tmp_path, monkeypatch):
    real, taken = Discriminator.loss, []

    def spoilt(critic, fakes, reals):
        loss, means = real(critic, fakes, reals)
        taken.append(1)
        return (loss * math.nan if len(taken) == 3 else loss), means

    monkeypatch.setattr(Discriminator, "loss", spoilt)
    with pytest.raises(TrainingError, match="the loss 'discriminator' of step 4, in epoch 2,"):
        run(config.replace(adversarial_weight=0.1, adversarial_start=1, out=tmp_path / "mine"))


class TestMuon:
    def test_takes_kernels_as_matrices_and_leaves_the_rest_to_adamw(self):
        state = fresh_state(build("ae", width=4), optimizer="muon", lr=0.01, weight_decay=0.1)
        model = state.model
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        prediction = model.predict(torch.rand(4, 3, 32, 32) * 2 - 1)
        state.learner.backward(state.objective.model_loss(prediction, 0).total)
        gradients = {name: value.grad.clone() for name, value in model.named_parameters()}
        kernels = [name for name, value in before.items() if value.ndim == 4]
        state.learner.step(0.01)
        after = dict(model.named_parameters())
        for name, value in before.items():
            if name in kernels[1:-1]:
                matrix = torch.nn.Parameter(value.reshape(len(value), -1).clone())
                theirs = torch.optim.Muon([matrix], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
                matrix.grad = gradients[name].reshape(matrix.shape)
            else:
                matrix = torch.nn.Parameter(value.clone())
                decay = 0.1 if value.ndim > 1 else 0.0
                theirs = torch.optim.AdamW([matrix], lr=0.01, betas=(0.9, 0.99), weight_decay=decay)
                matrix.grad = gradients[name]
            theirs.step()
            # Newton and Schulz' iteration runs in bfloat16, and the order of columns differs.
            torch.testing.assert_close(after[name].detach(), matrix.detach().view_as(value), rtol=0, atol=2e-4)

    def test_a_matrix_is_a_view_in_any_memory_format(self):
        for layout in (torch.contiguous_format, torch.channels_last):
            kernel = torch.randn(5, 3, 4, 4).contiguous(memory_format=layout)
            as_matrix(kernel).data.zero_()
            assert not kernel.any()

    def test_its_momentum_goes_over_into_another_memory_format(self):
        images = torch.rand(4, 3, 32, 32) * 2 - 1
        model = build("ae", width=4)
        states = [
            fresh_state(copy.deepcopy(model).to(memory_format=layout), optimizer="muon", lr=0.01)
            for layout in (torch.channels_last, torch.contiguous_format)
        ]
        for state in states:
            for _ in range(2):
                state.learner.backward(state.objective.model_loss(state.model.predict(images), 0).total)
                state.learner.step(0.01)
        one, other = (state.tensors() for state in states)
        kept = [name for name in one if "momentum_buffer" in name]
        assert kept
        for name in kept:
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=0.01 * one[name].abs().max())
        for source, state in ((other, states[0]), (one, states[1])):
            source = {name: value.clone() for name, value in source.items()}
            state.learner.restore(source, {})
            assert all(torch.equal(state.tensors()[name], source[name]) for name in kept)


def test_steps_need_no_import_of_pytorchs_compiler():
    script = """
import sys
import torch
from aecli.configs.train import OptimizationConfig
from aecli.training.schedules import build_schedule
from tests.support.objectives import fresh_state
from tests.support.plain_models import build
for optimizer in ("adam", "adamw", "muon"):
    state = fresh_state(build("ae", width=1), optimizer=optimizer, clip_norm=1.0, ema=0.9)
    state.learner.backward(state.model.predict(torch.zeros(2, 3, 32, 32)).output.sum())
    state.learner.step(build_schedule(OptimizationConfig(optimizer=optimizer), 1, 9)(1, [{"train_loss": 1.0}]))
    state.update_ema()
print("torch._dynamo" in sys.modules)
"""
    made = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert made.stdout == "False\n"


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_steps_are_those_of_pytorchs_optimizers(optimizer):
    model = build("ae", width=2)
    theirs = copy.deepcopy(model)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
    betas = model.betas if optimizer == "adam" else ADAMW_BETAS
    expected = kind(theirs.parameters(), lr=0.01, betas=betas, weight_decay=0, fused=True)
    state = fresh_state(model, optimizer=optimizer, lr=0.01, weight_decay=0)
    for number in range(3):
        for network in (model, theirs):
            torch.manual_seed(number)
            network.predict(torch.rand(4, 3, 32, 32)).output.square().mean().backward()
        expected.step()
        expected.zero_grad()
        state.learner.step(0.01)
    for one, other in zip(model.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


def test_clipping_bounds_the_norm_that_the_optimizer_sees():
    state = fresh_state(build("ae", width=4), clip_norm=1e-3, lr=1.0)
    state.learner.optimizers = [torch.optim.SGD(state.model.parameters(), lr=1.0)]
    before = torch.cat([each.detach().flatten() for each in state.model.parameters()])
    state.learner.backward(state.model.predict(torch.rand(4, 3, 32, 32)).output.square().sum())
    norm = state.learner.step(1.0)
    after = torch.cat([each.detach().flatten() for each in state.model.parameters()])
    assert norm > 1 and (after - before).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_muon_and_clipping_take_scaled_gradients(config, tmp_path):
    config = config.replace(optimizer="muon", clip_norm=0.1, epochs=1)
    run(config.replace(precision="fp16", out=tmp_path / "fp16"))
    run(config.replace(out=tmp_path / "fp32"))
    one, other = (float(rows(tmp_path / name)[-1]["val_loss"]) for name in ("fp16", "fp32"))
    assert one == pytest.approx(other, rel=2e-2)


def test_only_the_decoder_is_trained_and_the_encoder_keeps_its_batch_statistics(config, tmp_path):
    with pytest.raises(ConfigError, match="--train decoder: .*\n.*--init"):
        run(config.replace(train="decoder"))
    first = tmp_path / "first"
    run(config.replace(epochs=1, out=first))
    config = config.replace(train="decoder", epochs=2, init=str(first), optimizer="muon")
    run(config.replace(out=tmp_path / "whole"))
    for stop_after in (2, 4, None):
        run(config.replace(out=tmp_path / "parts"), stop_after)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    before, after = (load_file(folder / "model.safetensors") for folder in (first, tmp_path / "whole"))
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert changed and all(key.startswith("decoder.") for key in changed)


def test_a_sum_of_losses_follows_its_name_into_another_order(config):
    state = fresh_state(build("vae", width=4), ObjectiveConfig(ssim_weight=1.0))
    prediction = Prediction(torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16), {"kl": torch.tensor(3.0)})
    losses = state.objective.validation_loss(prediction)
    state.add(losses.total, losses.parts, 0.5)
    state.counters.batch = state.counters.step = 1
    means = state.means(state.sums.tolist())
    assert means["kl"] == 1.5 and means["recon"] == 0.5 and means["loss"] == pytest.approx(losses.total.item() / 2)
