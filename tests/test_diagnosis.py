"""What is said of runs: on rows with a known course, on small runs, and by following the advice."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from aecli import diagnosis
from aecli.diagnosis import training_findings
from aecli.models.options import AutoencoderOptions, VAEOptions
from tests.support.trained import fails, invoke, ok, ok_json, write_images

NOISE = np.random.default_rng(0).standard_normal(1000)


def course(train, val, rates=None):
    """Rows of metrics.csv of these losses and learning rates."""
    rates = [1e-4] * len(train) if rates is None else rates
    return [{"epoch": i + 1, "train_loss": float(a), "val_loss": None if b is None else float(b), "lr": float(lr)}
            for i, (a, b, lr) in enumerate(zip(train, val, rates, strict=True))]  # fmt: skip


def kinds(rows, best_kl=None, options=None):
    losses = [row["train_loss"] if row["val_loss"] is None else row["val_loss"] for row in rows]
    found = training_findings(rows, 1 + losses.index(min(losses)), best_kl, options)
    return [each.kind for each in found]


def falling(epochs, low=0.1, high=1.0, scale=10):
    return low + (high - low) * np.exp(-np.arange(epochs) / scale)


class TestOverfitting:
    @pytest.mark.parametrize("epochs", [20, 60, 300])
    def test_validation_rises_while_training_falls_below_it(self, epochs):
        val = falling(epochs, scale=epochs / 10) + 0.2 * np.arange(epochs) / epochs + 0.004 * NOISE[:epochs]
        assert kinds(course(falling(epochs, 0.0, scale=epochs / 5), val)) == ["overfitting"]

    @pytest.mark.parametrize("seed", range(20))
    @pytest.mark.parametrize("epochs", [10, 20, 100])
    def test_noise_about_a_level_is_none(self, seed, epochs):
        noise = 0.03 * np.random.default_rng(seed).standard_normal(epochs)
        assert "overfitting" not in kinds(course(falling(epochs, 0.0), 0.3 + noise))

    def test_a_train_loss_above_the_validation_loss_is_none(self):
        """A user's 40 photographs: after 20 epochs, 0.379 in training and 0.238 in validation."""
        train = 0.379 + 0.4 * np.exp(-np.arange(20) / 5)
        val = np.concatenate([0.2 + 0.3 * np.exp(-np.arange(12) / 3), np.linspace(0.2, 0.238, 8)])
        assert kinds(course(train, val)) == []

    def test_a_train_loss_that_no_longer_falls_is_none(self):
        val = np.concatenate([falling(30), np.linspace(0.15, 0.3, 30)])
        assert "overfitting" not in kinds(course(np.concatenate([falling(30, 0.05), np.full(30, 0.09)]), val))

    def test_without_validation_or_of_few_epochs_nothing_is_said(self):
        assert kinds(course(falling(40), [None] * 40)) == []
        assert kinds(course(falling(9, 0.0), np.linspace(0.1, 1, 9))) == []


class TestRate:
    def plateau(self, losses):
        """Learning rates of the report's scheduler, from PyTorch, for these train losses."""
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.Adam([parameter], 1e-4)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=10)
        rates = []
        for loss in losses:
            rates.append(optimizer.param_groups[0]["lr"])
            scheduler.step(loss)
        return rates

    def test_a_rate_halved_to_nothing_is_said_with_its_epoch(self):
        train = np.concatenate([falling(100), np.full(300, 0.1)])
        rates = self.plateau(train)
        (found,) = training_findings(course(train, [None] * 400, rates), 100, None, None)
        assert found.kind == "rate" and found.figures["lr"] == rates[-1] < 1e-7
        since = int(found.figures["epoch"])
        assert rates[since - 1] < 1e-7 <= rates[since - 2]
        assert f"--epochs {since}" in found.text

    def test_a_low_rate_with_which_training_gets_on_is_none(self):
        train = np.concatenate([falling(100), np.full(130, 0.1)])
        rates = self.plateau(train)
        train[np.array(rates) < 1e-7] = 0.05
        assert "rate" in kinds(course(train, [None] * 230, rates))
        train[-1] = 0.02
        assert "rate" not in kinds(course(train, [None] * 230, rates))

    def test_a_rate_that_is_still_high_is_none(self):
        train = falling(400, scale=100)
        assert kinds(course(train, [None] * 400, self.plateau(train))) == []

    def test_a_schedule_that_ends_low_is_none(self):
        cosine = [1e-4 * (1 + math.cos(math.pi * i / 100)) / 2 for i in range(101)]
        assert kinds(course(falling(101), [None] * 101, cosine)) == []


def test_a_loss_of_several_times_its_minimum_has_diverged():
    rising = np.concatenate([falling(20), np.linspace(0.15, 3, 20)])
    (found,) = training_findings(course(rising, rising, [0.01] * 40), 20, None, None)
    assert found.kind == "diverged" and "--lr 0.001" in found.text
    assert kinds(course(falling(40), falling(40))) == []


def test_a_long_wait_for_a_better_validation_loss_is_said_as_that():
    val = np.concatenate([falling(20), np.full(40, 0.3)])
    train = np.concatenate([falling(20), np.full(40, 0.29)])
    assert kinds(course(train, val)) == ["stalled"]
    assert kinds(course(train[:35], val[:35])) == []


def test_of_a_loss_against_an_adversary_no_trend_is_said():
    rising = np.concatenate([falling(20), np.linspace(0.15, 3, 20)])
    assert kinds([{**row, "train_adversarial": 1.0} for row in course(rising, [None] * 40)]) == []


def test_patience_is_named_only_where_it_watches_the_validation_loss():
    val = falling(60, scale=6) + 0.2 * np.arange(60) / 60
    rows = course(falling(60, 0.0, scale=12), val)
    lowest = 1 + int(np.argmin(val))
    (by_loss,), (by_psnr,) = (training_findings(rows, epoch, None, None) for epoch in (lowest, lowest + 5))
    assert f"--patience {by_loss.figures['patience']:g}" in by_loss.text and "--patience" not in by_psnr.text


def test_a_collapsed_kl_names_a_smaller_beta():
    assert diagnosis.collapsed(1e-4, VAEOptions(beta=10.0)).text.endswith("train with --beta 2.5e-05 instead of 10")
    assert diagnosis.collapsed(1e-4, VAEOptions(beta=1e-6)).text.endswith("train with --beta 1e-07 instead of 1e-06")
    assert "--beta" not in diagnosis.collapsed(1e-4, AutoencoderOptions()).text
    assert diagnosis.collapsed(0.01, VAEOptions()) is None and diagnosis.collapsed(None, AutoencoderOptions()) is None


def test_latents_are_far_from_n_0_i_above_a_divergence():
    assert diagnosis.far_from_normal(0.05, 0.9, 0.3) is None
    assert "0.20 instead of 1" in diagnosis.far_from_normal(0.8, 0.2, 1.0).text
    assert "--prior mixture" in diagnosis.far_from_normal(3.0, None, 5.0).text


# Runs

TINY = ["--image-size", "32", "--batch-size", "3", "--seed", "1", "--val-fraction", "0.3", "--cache", "off",
        "--compile", "off", "--device", "cpu"]  # fmt: skip


def train(*args):
    return ok_json("train", args[0], *TINY, *args[1:])


@pytest.mark.usefixtures("no_pictures")
class TestRuns:
    def test_a_kl_that_collapsed_is_said_after_training_and_by_sample_and_its_advice_helps(self, workplace):
        command = ["vae", "--data", "images", "--width", "4", "--epochs", "12", "--lr", "0.01"]
        too_large = [*command, "--beta", "100", "--out", "collapsed"]
        (found,) = train(*too_large)["findings"]
        assert found["kind"] == "collapsed" and found["figures"]["kl"] < 1e-3
        assert found["text"] in ok("train", too_large[0], *TINY, *too_large[1:]).stdout
        for prior in ("auto", "normal"):
            assert found["text"] in invoke("sample", "--model", "collapsed", "--n", "1", "--prior", prior).stderr
        advice = found["text"].split("train with ")[1].split(" instead")[0].split()
        assert train(*command, *advice, "--out", "helped")["findings"] == []
        assert "KL" not in invoke("sample", "--model", "helped", "--n", "1").stderr

    @pytest.mark.slow
    def test_an_overfitted_run_is_said_and_stops_with_the_patience_that_is_named(self, workplace):
        (workplace / "noise").mkdir()
        for i in range(10):
            noise = np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((64, 64), 0).save(workplace / f"noise/{i:02}.png")
        command = ["ae", "--data", "noise", "--width", "8", "--epochs", "40", "--lr", "3e-3", "--batch-size", "4"]
        document = train(*command, "--out", "long")
        (found,) = document["findings"]
        assert found["kind"] == "overfitting" and found["figures"]["train_loss"] < found["figures"]["val_loss"]
        patience = found["text"].split("--patience ")[1].split()[0]
        stopped = train(*command, "--out", "short", "--patience", patience)
        assert stopped["stopped_early"] and stopped["best"] == document["best"]

    @pytest.mark.soak
    def test_a_rate_that_died_away_is_said_and_fewer_epochs_come_as_far(self, workplace, monkeypatch):
        monkeypatch.setattr("aecli.models.base.Trainable.plateau_epochs", 1)
        command = ["ae", "--data", "images", "--width", "2", "--lr", "0.01"]
        document = train(*command, "--epochs", "100", "--out", "long")
        (found,) = [each for each in document["findings"] if each["kind"] == "rate"]
        epochs = found["text"].split("--epochs ")[1].split()[0]
        shorter = train(*command, "--epochs", epochs, "--out", "short")
        assert shorter["best"]["val_loss"] == pytest.approx(document["best"]["val_loss"], rel=0.01)

    def test_a_run_that_has_just_begun_has_nothing_said_of_it(self, workplace):
        assert train("vae", "--data", "images", "--width", "4", "--epochs", "2", "--out", "run")["findings"] == []

    def test_a_loss_that_is_not_finite_names_a_rate_that_works(self, workplace):
        command = ["train", "vae", "--data", "images", "--width", "4", "--epochs", "1", *TINY, "--batch-size", "16"]
        message = invoke(*command, "--lr", "1e30").stderr
        advice = message.split("hint: try ")[1].split(" instead")[0].split()
        assert advice == ["--lr", "0.0001"]
        ok(*command, *advice)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("images", "options"),
    [(10, ["--batch-size", "3"]), (13, ["--batch-size", "4"]), (13, ["--batch-size", "4", "--grad-accum", "4"]),
     (3, ["--batch-size", "2"]), (3, ["--batch-size", "1"]), (7, ["--batch-size", "6", "--grad-accum", "2"])],
)  # fmt: skip
def test_a_batch_of_one_image_names_options_that_go_through(tmp_path, monkeypatch, images, options):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images", [f"{i:02}" for i in range(images)])
    command = ["train", "ae", "--data", "images", "--val-fraction", "0", "--image-size", "32", "--width", "1",
               "--epochs", "1", "--cache", "off", *options]  # fmt: skip
    size, larger = fails(2, *command).splitlines()[1].removeprefix("hint: ").split(", or ")
    assert size.startswith("--batch-size ") and larger == "--image-size 64"
    for way in (size, larger):
        ok(*command, *way.split(), "--out", way.strip("-").replace(" ", "-"))


def test_a_codebook_of_which_less_than_half_is_used_is_said():
    row = {"train_codebook_usage": 0.49, "train_perplexity": 100.0}
    found = diagnosis.few_codes([row])
    assert found.figures == {"codebook_usage": 0.49, "perplexity": 100.0} and "49 %" in found.text
    assert diagnosis.few_codes([row, {**row, "train_codebook_usage": 0.5}]) is None
    assert diagnosis.few_codes([{}]) is None and diagnosis.few_codes([]) is None
