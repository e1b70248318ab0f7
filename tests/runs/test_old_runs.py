"""Runs of older and newer versions: `fixtures/vae-0.1.0` was written by aecli 0.1.0, stopped after 5 of 12 steps.

It was trained with `OPTIONS` on `write_bitmaps`; its config.json has IMAGES and RUN in place of paths.
"""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from aecli.configs import TrainConfig
from aecli.progress import Notice
from aecli.runs.checkpoints import read_document
from aecli.training import loop
from aecli.training.events import Finished, Started
from tests.support.trained import ok, ok_json, pngs, rewrite, rows

FIXTURE = Path(__file__).parent / "fixtures" / "vae-0.1.0"
OPTIONS = {
    "val_fraction": 0.3, "epochs": 4, "image_size": 32, "batch_size": 3, "lr": 1e-3, "ema": 0.9, "flip": True,
    "options": {"width": 2, "latent_dim": 4}, "device": "cpu", "precision": "fp32", "compile": "off", "cache": "off",
    "seed": 1,
}  # fmt: skip
pytestmark = pytest.mark.usefixtures("no_pictures")


def write_bitmaps(folder: Path) -> None:
    """Write 12 pictures, uncompressed, so that their sizes, which the fingerprint takes, are the same everywhere."""
    folder.mkdir()
    for seed in range(12):
        rows, columns = np.mgrid[0:32, 0:32]
        smooth = np.stack([rows / 32, columns / 32, (rows + columns) / 64], axis=-1)
        pixels = 200 * smooth + 55 * np.random.default_rng(seed).random((32, 32, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{seed:02d}.bmp")


@pytest.fixture
def old_run(tmp_path):
    """A copy of the fixture, `runs/vae`, with its images."""
    write_bitmaps(tmp_path / "images")
    folder = tmp_path / "runs" / "vae"
    shutil.copytree(FIXTURE, folder)
    text = (folder / "config.json").read_text()
    paths = {"IMAGES": tmp_path / "images", "RUN": folder}
    for name, path in paths.items():
        text = text.replace(f'"{name}"', json.dumps(str(path)))
    (folder / "config.json").write_text(text)
    return folder


@pytest.fixture
def one_thread():
    """The fixture's number of threads, on which the last bits depend."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(folder, **named):
    return list(loop.train(TrainConfig("vae", str(folder / "images"), runs=folder / "runs", **OPTIONS, **named)))


def assert_resumed(reports, run):
    started = next(each for each in reports if isinstance(each, Started))
    assert (started.run.path, started.epochs_done, started.batches_done) == (run, 1, 2)
    assert isinstance(reports[-1], Finished) and reports[-1].epochs == 4
    assert not [each.text for each in reports if isinstance(each, Notice) and "images" in each.text]


def test_a_run_of_version_0_1_0_resumes_to_what_it_would_have_become(old_run, tmp_path, one_thread):
    assert_resumed(train(tmp_path), old_run)
    train(tmp_path, out=tmp_path / "whole")
    whole, resumed = ([{key: float(value) for key, value in row.items() if key != "val_lpips"} for row in rows(folder)]
                      for folder in (tmp_path / "whole", old_run))  # fmt: skip
    assert [row["val_lpips"] == "" for row in rows(old_run)] == [True, False, False, False]  # a later column
    # Where this processor takes the fixture's first steps to the same bits, it must take the others so too.
    is_exact = whole[0]["train_loss"] == resumed[0]["train_loss"]
    for ours, theirs in zip(whole, resumed, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-12 if is_exact else 1e-2)  # SSIM's last digit depends on its code
    ours, theirs = (load_file(folder / "last.safetensors") for folder in (tmp_path / "whole", old_run))
    assert ours.keys() == theirs.keys()
    assert not is_exact or all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_a_run_of_version_0_1_0_reconstructs_samples_and_is_listed(old_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ok_json("reconstruct", "--model", "vae", "--out", "reconstructed")["written"] == 4
    assert len(pngs(tmp_path / "reconstructed")) == 4
    ok("sample", "--model", "vae", "--n", "3", "--out", "samples")
    assert len(pngs(tmp_path / "samples")) == 3
    listed = ok_json("models", "--runs", "runs")["runs"]
    assert [(run["model"], run["epochs"], run["best_epoch"]) for run in listed] == [("vae", 1, 1)]


def test_unknown_keys_and_an_absent_option_neither_damage_a_run_nor_begin_another(old_run, tmp_path):
    """As a newer version would leave it: an unknown key in every object, a column, a loss, a tensor; and an older one:
    without the options that came last."""
    config = json.loads((old_run / "config.json").read_text())
    for key in ("epoch_steps", "shuffle_buffer", "accumulate", "sync_batchnorm", "checkpoint_every", "log"):
        del config["options"][key]
    del config["options"]["options"]["beta"]
    (old_run / "config.json").write_text(json.dumps(with_unknown_keys(config)))
    state = load_file(old_run / "last.safetensors")
    rewrite(old_run / "last.safetensors", with_unknown_keys, {**state, "critic.weight": torch.ones(2, 2)})
    rewrite(old_run / "model.safetensors", lambda document: {**document, "from_the_future": 1})
    with open(old_run / "metrics.csv") as file:
        header, *lines = csv.reader(file)
    with open(old_run / "metrics.csv", "w") as file:
        csv.writer(file).writerows([[*header, "val_lpips"], *([*line, "0.5"] for line in lines)])
    assert_resumed(train(tmp_path), old_run)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["vae"]
    assert read_document(old_run / "last.safetensors")["epoch"] == 4
    with safe_open(old_run / "model.safetensors", "pt") as file:
        assert "decoder.15.bias" in file.keys()


def with_unknown_keys(value):
    """Return JSON with `from_the_future` in every object."""
    if isinstance(value, dict):
        return {**{key: with_unknown_keys(each) for key, each in value.items()}, "from_the_future": {"a": [1]}}
    return [with_unknown_keys(each) for each in value] if isinstance(value, list) else value
