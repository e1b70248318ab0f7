"""Training on a stream: by steps, resumed at the image, the same for every number of processes."""

import pytest

from aecli.configs import TrainConfig
from aecli.errors import CheckpointError, ConfigError
from aecli.progress import Notice
from aecli.runs.checkpoints import read_document
from aecli.runs.folder import RunFolder
from aecli.training.events import EpochReport, Finished, Interrupted, Started
from aecli.training.inputs import preparation
from tests.support.shards import write_parquet, write_tars
from tests.support.trained import assert_same_run, fails, ok_json, rewrite, rows
from tests.training.test_loop import run
from tests.training.test_ranks import assert_close_runs, train

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def config(tmp_path):
    contents = write_tars(tmp_path / "shards", [9, 6, 3, 7])
    write_parquet(tmp_path / "val.parquet", contents[:5])
    return TrainConfig(
        model="vae", data=str(tmp_path / "shards" / "*.tar"), val_data=str(tmp_path / "val.parquet"), steps=10,
        epoch_steps=4, shuffle_buffer=9, image_size=32, batch_size=6, lr=1e-3, options={"width": 4}, flip=True,
        device="cpu", precision="fp32", compile="off", out=tmp_path / "mine",
    )  # fmt: skip


def test_it_has_a_row_every_so_many_steps_and_ends_after_its_steps(config, tmp_path):
    reports, end = run(config)
    assert isinstance(end, Finished) and end.epochs == 3
    assert [(row["epoch"], row["step"]) for row in rows(tmp_path / "mine")] == [("1", "4"), ("2", "8"), ("3", "10")]
    assert all(float(row["val_loss"]) > 0 for row in rows(tmp_path / "mine"))
    started = next(report for report in reports if isinstance(report, Started))
    assert (started.train_images, started.val_images, started.epochs) == (None, 5, 3)
    data = RunFolder(tmp_path / "mine").read_config()["data"]
    assert (data["images"], data["shards"], data["lanes"]) == (None, 4, 3)
    assert len([report for report in reports if isinstance(report, EpochReport)]) == 3


@pytest.mark.parametrize("stop_after", [1, 5, 9])
def test_stopped_anywhere_and_continued_it_is_the_run_never_stopped(config, tmp_path, stop_after):
    run(config.replace(out=tmp_path / "whole"))
    _, end = run(config, stop_after)
    assert isinstance(end, Interrupted)
    run(config)
    assert_same_run(tmp_path / "whole", tmp_path / "mine")


@pytest.mark.slow
def test_every_number_of_processes_trains_alike_and_may_go_on(tmp_path, config):
    (tmp_path / "images").mkdir()  # what the other tests of processes train on
    options = ["--data", "shards/*.tar", "--val-data", "val.parquet", "--epoch-steps", "4", "--batch-size", "6",
               "--shuffle-buffer", "9", "--image-size", "32"]  # fmt: skip
    whole = train(tmp_path, 1, "whole", *options, "--steps", "8")
    assert_close_runs(whole, train(tmp_path, 2, "two", *options, "--steps", "8"))
    train(tmp_path, 3, "grown", *options, "--steps", "4")
    assert_close_runs(whole, train(tmp_path, 2, "grown", *options, "--steps", "8"))
    cursors = [read_document(tmp_path / out / "last.safetensors")["cursors"] for out in ("whole", "two", "grown")]
    assert cursors[0] == cursors[1] == cursors[2] and len(cursors[0]) == 3


def test_it_needs_an_end_and_holds_nothing_out(config):
    with pytest.raises(ConfigError, match="--steps: .* is a stream, which has no end"):
        run(config.replace(steps=None))
    reports, end = run(config.replace(val_data=None, steps=2))
    assert isinstance(end, Finished)
    assert any("nothing is held out" in report.text for report in reports if isinstance(report, Notice))
    assert rows(config.run.out)[0]["val_loss"] == ""


@pytest.mark.draws
def test_its_latest_images_are_drawn(config, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("aecli.training.observers.previews.draw_rows", drawn.append)
    monkeypatch.setattr("aecli.training.observers.previews.png_bytes", lambda _picture: b"")
    run(config.replace(steps=4))
    assert [(label, len(images)) for label, images in drawn[-1]] == [
        ("Validation", 5), ("VAE keeps 1/48", 5), ("Training", 6), ("VAE keeps 1/48", 6)
    ]  # fmt: skip


def test_other_shards_give_a_notice_and_begin_again(config, tmp_path):
    run(config, stop_after=3)
    write_tars(tmp_path / "shards", [60, 1])
    reports, end = run(config)
    assert isinstance(end, Finished)
    assert any("of another size (0.tar" in report.text for report in reports if isinstance(report, Notice))


def test_an_invalid_position_is_refused(config, tmp_path):
    run(config, stop_after=3)
    rewrite(tmp_path / "mine" / "last.safetensors", lambda document: document.update(cursors=[[0, 0, 0, 0, 10**9]] * 3))
    with pytest.raises(CheckpointError, match="(?s)does not fit these images.*--restart"):
        run(config)


def test_what_is_reconstructed_of_such_a_run(config, tmp_path):
    run(config.replace(steps=2))
    run(config.replace(steps=2, val_data=None, out=tmp_path / "unheld"))
    assert ok_json("reconstruct", "--model", tmp_path / "mine", "--out", tmp_path / "a")["written"] == 5
    everything = ok_json("reconstruct", "--model", tmp_path / "mine", "--split", "all", "--out", tmp_path / "b")
    assert everything["written"] == 30
    assert "without validation images" in fails(
        1, "reconstruct", "--model", tmp_path / "unheld", "--out", tmp_path / "c"
    )


def test_a_stream_is_fitted_in_closed_form(config, tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "_PIXELS", 64 * 32**2)  # 8,192 images by themselves: seconds
    flat = {key: value for key, value in config.flat().items() if key not in ("model", "options", "steps", "epochs")}
    pca = TrainConfig(model="pca", **{**flat, "steps": 4, "options": {"latent_dim": 48}})
    _, end = run(pca)
    assert isinstance(end, Finished)
    assert float(rows(tmp_path / "mine")[-1]["val_psnr"]) > 12  # noise of 32 pixels, in a quarter of its numbers
