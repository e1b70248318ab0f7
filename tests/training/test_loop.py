"""A run: exact resume above all, then what it writes and what it refuses."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from aecli.data.batches import epoch_order
from aecli.data.decoding.decode import decode, fit
from aecli.data.sources.registry import list_images, split_indices
from aecli.errors import CheckpointError, ConfigError, TrainingError
from aecli.metrics.psnr import psnr
from aecli.progress import Notice
from aecli.runs import checkpoints
from aecli.training import loop, sync
from aecli.training.events import EpochReport, Finished, Interrupted, Started
from tests.reference.report import ReportAE, ae_loss
from tests.support.images import encoded, picture
from tests.support.plain_models import build
from tests.support.stopping import train_until
from tests.support.trained import assert_same_run, rows

pytestmark = pytest.mark.usefixtures("no_pictures")


def run(config, stop_after=None):
    reports = train_until(config, stop_after)
    return reports, reports[-1]


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "ae", "flip": True, "ema": 0.9},
        {"precision": "bf16", "flip": True, "turns": True, "resized_crops": True, "patience": 50},
        {"precision": "fp16"},
        {"model": "ae", "fit": "random-crop", "flip": True, "val_fraction": 0.0},
    ],
    ids=["ae-flip-ema", "bf16-augmented", "fp16", "random-crop"],
)
def test_a_run_stopped_anywhere_and_continued_is_the_run_never_stopped(config, tmp_path, changes):
    config = config.replace(**changes)
    run(config.replace(out=tmp_path / "whole"))
    parts = config.replace(out=tmp_path / "parts")
    steps_and_validations = []
    # Each part gets a little further: stops fall after epochs, in mid-epoch and in mid-validation.
    for stop_after in (1, 3, 4, 2, 5):
        _, end = run(parts, stop_after)
        assert isinstance(end, Interrupted) and end.run is not None
        steps_and_validations.append((end.epoch, end.batch))
    assert len(set(steps_and_validations)) == 5
    _, end = run(parts)
    assert isinstance(end, Finished) and end.epochs == 3
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_epochs_may_grow(config, tmp_path):
    run(config.replace(out=tmp_path / "whole"))
    _, end = run(config.replace(out=tmp_path / "grown", epochs=1))
    assert end.epochs == 1
    reports, _ = run(config.replace(out=tmp_path / "grown"))
    assert [report.epoch for report in reports if isinstance(report, EpochReport)] == [2, 3]
    assert_same_run(tmp_path / "whole", tmp_path / "grown")


def crash(config, monkeypatch, steps):
    """Train until an exception tears the step after so many: nothing more is saved, as if the process was killed."""
    taken = itertools.count()
    real = loop.train_step

    def torn(*arguments):
        if next(taken) == steps:
            raise ZeroDivisionError
        real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(loop, "train_step", torn)
        run(config)


def test_a_crash_after_the_last_checkpoint_costs_nothing_but_time(config, tmp_path, monkeypatch):
    _, end = run(config.replace(out=tmp_path / "whole"))
    crashed = config.replace(out=tmp_path / "crashed")
    steps = checkpoints.read_document(end.run.last)["clock"]["step"]
    crash(crashed, monkeypatch, steps - 1)  # epoch 2 was too quick to earn a checkpoint
    assert checkpoints.read_document(tmp_path / "crashed" / "last.safetensors")["epoch"] == 1
    assert len(rows(tmp_path / "crashed")) == 2
    reports = loop.train(crashed)
    started = next(report for report in reports if isinstance(report, Started))
    assert started.epochs_done == len(rows(tmp_path / "crashed")) == 1  # rows of what is lost are taken back at once
    list(reports)
    assert_same_run(tmp_path / "whole", tmp_path / "crashed")


def test_the_same_seed_gives_the_same_run_and_another_seed_another(config, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(config.replace(out=tmp_path / name, seed=seed, epochs=1))
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert rows(tmp_path / "a") != rows(tmp_path / "c")


def split_pixels(photographs):
    """The training and the validation images, as uint8 (N, 3, 32, 32)."""
    listed = list_images(str(photographs))
    for indices in split_indices(listed, 0.25):
        pixels = [fit(decode(listed[index]).pixels, 32, "squash").transpose(2, 0, 1) for index in indices]
        yield torch.from_numpy(np.stack(pixels))


def test_the_epochs_loss_is_the_mean_over_all_its_batches(config, photographs):
    """Against the same epoch done by hand from the same initial weights."""
    config = config.replace(model="ae", epochs=1)
    _, end = run(config)
    row = rows(end.run.path)[0]

    reference = ReportAE(4, 64).train()
    reference.load_state_dict(build("ae", width=4).state_dict())
    optimizer = torch.optim.Adam(reference.parameters(), lr=1e-3, betas=(0.5, 0.999))
    images, _ = (pixels.float() / 127.5 - 1 for pixels in split_pixels(photographs))
    losses = []
    for batch in images[torch.from_numpy(epoch_order(len(images), 0, 0))].split(3):
        loss = ae_loss(reference, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert len(losses) == -(-len(images) // 3)
    assert float(row["train_loss"]) == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert row["train_kl"] == ""


def test_validation_figures_are_those_of_the_saved_weights(config, photographs):
    _, end = run(config)
    model, document = checkpoints.load_model(end.run.model)
    assert document["epoch"] == end.best_epoch
    _, originals = split_pixels(photographs)
    with torch.no_grad():
        output = model(originals.float() / 127.5 - 1)
    rounded = ((output + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    assert document["metrics"]["val_psnr"] == pytest.approx(psnr(originals, rounded).mean().item(), abs=1e-3)


@pytest.mark.draws
def test_a_run_folder_holds_what_is_promised(config):
    _, end = run(config.replace(ema=0.5))
    folder = end.run.path
    assert folder == config.run.runs / "vae"
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json", "curves.png", "images.csv", "last.safetensors", "metrics.csv", "model.safetensors", "previews",
    ]  # fmt: skip
    assert [p.name for p in sorted((folder / "previews").iterdir())] == [f"epoch-000{n}.png" for n in (1, 2, 3)]
    with open(folder / "metrics.csv") as file:
        assert file.readline().strip() == (
            "epoch,step,lr,train_loss,train_recon,train_kl,val_loss,val_psnr,val_ssim,images_per_s,seconds,val_lpips"
        )
    recorded = json.loads((folder / "config.json").read_text())
    assert recorded["model"] == {"name": "vae", "options": {"width": 4, "latent_dim": None, "beta": 2.5e-5}}
    assert recorded["options"]["lr"] == 1e-3 and recorded["placement"]["precision"] == "fp32"
    assert recorded["split"]["train"] + recorded["split"]["val"] == recorded["data"]["images"] == 15
    assert len(recorded["data"]["fingerprint"]) == 64 and recorded["versions"]["torch"] == torch.__version__
    averaged = load_file(folder / "last.safetensors")
    best = load_file(folder / "model.safetensors")
    if end.best_epoch == 3:  # the weights that count are the averaged ones
        assert torch.equal(best["encoder.0.weight"], averaged["average.module.encoder.0.weight"])
    assert not torch.equal(averaged["model.encoder.0.weight"], averaged["average.module.encoder.0.weight"])


def test_the_schedule_halves_the_rate_after_ten_epochs_without_a_better_train_loss(config):
    # With a rate far too high the first loss stays the best: the rate is halved time and again.
    _, end = run(config.replace(model="ae", lr=5.0, epochs=26, val_fraction=0.0, batch_size=15))
    rates = [float(row["lr"]) for row in rows(end.run.path)]
    losses = [float(row["train_loss"]) for row in rows(end.run.path)]
    expected, rate, best, bad = [], 5.0, float("inf"), 0
    for loss in losses:
        expected.append(rate)
        bad = 0 if loss < best * (1 - 1e-4) else bad + 1
        best = min(best, loss) if bad == 0 else best
        if bad > 10:
            rate, bad = (rate * 0.5 if rate * 0.5 < rate - 1e-8 else rate), 0
    assert rates == pytest.approx(expected) and sorted(set(rates)) == [1.25, 2.5, 5.0]


def test_patience_stops_early_and_stays_stopped(config):
    config = config.replace(lr=1e-12, epochs=60, patience=2)
    _, end = run(config)
    assert isinstance(end, Finished) and end.stopped_early and end.epochs == end.best_epoch + 2 < 60
    _, again = run(config)
    assert again.was_finished and again.epochs == end.epochs


@pytest.mark.parametrize("larger", [4, None])
def test_a_run_that_stopped_early_continues_with_a_larger_patience(config, tmp_path, larger):
    """Bit for bit the run that had it from the beginning; and the old patience finds it stopped again."""
    config = config.replace(lr=1e-12, epochs=7, batch_size=6)
    run(config.replace(patience=larger, out=tmp_path / "whole"))
    grown = config.replace(out=tmp_path / "grown")
    _, end = run(grown.replace(patience=1))
    assert end.stopped_early and not end.was_finished
    _, continued = run(grown.replace(patience=larger))
    assert not continued.was_finished and continued.epochs > end.epochs
    assert_same_run(tmp_path / "whole", tmp_path / "grown")
    _, again = run(grown.replace(patience=1))
    assert again.was_finished and again.stopped_early


def test_broken_images_are_named_and_skipped_up_to_one_per_cent(config, photographs):
    for seed in range(100):
        (photographs / f"more-{seed}.png").write_bytes(encoded(picture(8, 8, seed)))
    (photographs / "broken[1].png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    reports, end = run(config.replace(epochs=1, batch_size=30))
    notices = [report.text for report in reports if isinstance(report, Notice)]
    assert any("skipped 1 of 116" in text and "broken[1].png" in text for text in notices)
    assert json.loads(end.run.config.read_text())["data"]["skipped"] == ["broken[1].png"]


def test_without_validation_images_the_train_loss_decides(config):
    reports, end = run(config.replace(val_fraction=0.0))
    started = next(report for report in reports if isinstance(report, Started))
    assert (started.train_images, started.val_images) == (15, 0)
    found = rows(end.run.path)
    assert all(row["val_loss"] == row["val_psnr"] == row["val_ssim"] == "" for row in found)
    assert end.best["train_loss"] == min(float(row["train_loss"]) for row in found)


def test_the_best_weights_survive_a_loss_that_is_not_finite(config, tmp_path, monkeypatch):
    run(config.replace(out=tmp_path / "mine", epochs=1))
    real = loop.validate
    calls = itertools.count()

    def ever_better_then_nothing(*arguments):
        call = next(calls)
        return replace(real(*arguments), loss=[0.02, 0.01, float("nan")][call])

    monkeypatch.setattr(loop, "validate", ever_better_then_nothing)
    with pytest.raises(TrainingError, match="validation loss of epoch 4"):
        run(config.replace(out=tmp_path / "mine", epochs=9))
    assert checkpoints.read_document(tmp_path / "mine" / "model.safetensors")["epoch"] == 3


def test_a_long_epoch_is_saved_in_its_middle(config, tmp_path, monkeypatch):
    monkeypatch.setattr(sync, "SYNC_INTERVAL_SECONDS", 0.0)
    run(config.replace(out=tmp_path / "whole"))
    config = config.replace(checkpoint_every=1e-9)
    crash(config.replace(out=tmp_path / "killed"), monkeypatch, 2)
    document = checkpoints.read_document(tmp_path / "killed" / "last.safetensors")
    assert (document["epoch"], document["clock"]["batch"]) == (0, 2)
    run(config.replace(out=tmp_path / "killed"))
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_state_lands_on_its_parameters_device_and_layout():
    from aecli.training.optim import matching_layout

    like = torch.empty(2, 3, 4, 4, device="meta").to(memory_format=torch.channels_last)
    assert matching_layout(torch.tensor(7.0), like).device.type == "meta"
    moved = matching_layout(torch.zeros(2, 3, 4, 4), like)
    assert moved.device.type == "meta" and moved.is_contiguous(memory_format=torch.channels_last)


class TestFolders:
    def test_a_batch_of_one_image_without_variance_is_refused(self, config):
        with pytest.raises(ConfigError, match="--batch-size 14: the last batch of 15 images would be one image"):
            run(config.replace(val_fraction=0.0, batch_size=14))
        assert not config.run.runs.exists()
        run(config.replace(val_fraction=0.0, batch_size=14, image_size=64, epochs=1))

    @pytest.mark.parametrize("restart", [True, False])
    def test_another_programs_config_json_is_not_ours_to_replace(self, config, tmp_path, restart):
        (tmp_path / "theirs").mkdir()
        (tmp_path / "theirs" / "config.json").write_text('{"architectures": ["CLIP"]}')
        (tmp_path / "theirs" / "model.safetensors").write_bytes(b"precious")
        with pytest.raises(CheckpointError, match="config.json"):
            run(config.replace(out=tmp_path / "theirs", restart=restart))
        assert (tmp_path / "theirs" / "model.safetensors").read_bytes() == b"precious"

    @pytest.mark.parametrize(("changed", "notice"), [("held_out", "--val-data"), ("photographs", "--data")])
    def test_changed_images_give_a_notice(self, config, image_folder, tmp_path, changed, notice):
        held_out = image_folder("50.png", "51.png", folder="held_out", height=40, width=40)
        config = config.replace(image_size=64, val_data=str(held_out))
        run(config.replace(epochs=1))
        (tmp_path / changed / "new.png").write_bytes(encoded(picture(40, 40, 99)))
        reports, end = run(config.replace(epochs=2))
        assert end.epochs == 2
        found = [report.text for report in reports if isinstance(report, Notice)]
        assert any(f"{notice} {tmp_path / changed}" in text and "1 added (new.png)" in text for text in found)

    def test_a_folder_called_demo_is_not_confused_with_the_built_in_photographs(self, config, photographs, monkeypatch):
        photographs.rename(photographs.with_name("demo"))
        monkeypatch.chdir(photographs.parent)
        _, end = run(config.replace(data="demo", epochs=1, batch_size=42))
        assert json.loads(end.run.config.read_text())["options"]["data"] == "demo"
        _, end = run(config.replace(data="./demo", epochs=1))
        assert json.loads(end.run.config.read_text())["options"]["data"] == str(photographs.with_name("demo"))
