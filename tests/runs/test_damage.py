"""Run folders of unknown origin: config.json, and other things under the names of a run's files."""

import json
import os
import shutil
import signal
from contextlib import contextmanager

import pytest

from aecli.runs import catalogue
from tests.support.trained import TRAIN, fails, ok, ok_json, rewrite

CONFIGS = {
    "a name of escapes": lambda c: c["model"].update(name="\x1b[2J"),
    "a name that is a list": lambda c: c["model"].update(name=["vae"]),
    "no model options": lambda c: c["model"].pop("options"),
    "model options that are a list": lambda c: c["model"].update(options=[]),
    "options that are a list": lambda c: c["options"].update(options=[]),
    "data that is a list": lambda c: c["options"].update(data=["images"]),
    "validation data that is a number": lambda c: c["options"].update(val_data=3),
    "a fraction as text": lambda c: c["options"].update(val_fraction="0.1"),
    "a fraction of all": lambda c: c["options"].update(val_fraction=1),
    "an image size of escapes": lambda c: c["options"].update(image_size="\x1b[2J"),
    "an image size below zero": lambda c: c["options"].update(image_size=-32),
    "an image size beyond all": lambda c: c["options"].update(image_size=10**9),
    "a fit that is none": lambda c: c["options"].update(fit="stretch"),
    "epochs as text": lambda c: c["options"].update(epochs="2"),
    "a record that is a list": lambda c: c.update(data=["fingerprint"]),
    "a second record that is a word": lambda c: c.update(val_data="x"),
    "a place of numbers": lambda c: c["placement"].update(device=0),
    "a schema as text": lambda c: c.update(schema="1"),
    "figures without end": lambda c: c["model"]["options"].update(beta=float("inf")),
}


@pytest.fixture(autouse=True)
def uncounted_models(monkeypatch):
    """Counting what the built-in ones cost takes most of `aecli models`, and is no matter of run folders."""
    facts = catalogue.ModelFacts("vae", "aecli.models.vae:VAE", 0, (1, 1, 1), 0.0)
    monkeypatch.setattr(catalogue, "describe_model", lambda *named: facts)


@pytest.mark.parametrize("change", CONFIGS)
def test_an_invalid_config_is_reported_and_stops_nothing_else(run, change):
    config = json.loads((run / "config.json").read_text())
    CONFIGS[change](config)
    (run / "config.json").write_text(json.dumps(config))
    for args in (["reconstruct", "--model", run, "--out", "x"], ["train", "vae", *TRAIN, "--out", run]):
        message = fails(1, *args)
        assert f"{run / 'config.json'} is damaged" in message and "\x1b" not in message
    assert ok_json("models", "--runs", "mine")["runs"] == []


def test_a_newer_runs_config_is_refused(run):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "schema": 99}))
    assert "config.json was written by a newer aecli" in fails(1, "reconstruct", "--model", run, "--out", "x")


@pytest.mark.parametrize("change", [
    lambda d: d.update(epoch=10**18), lambda d: d.update(epoch=1e300), lambda d: d.update(metrics={"val_psnr": 10**18}),
    lambda d: d.update(metrics={"val_psnr": 1e308, "val_ssim": True}), lambda d: d.update(metrics=[1], epoch=[2]),
    lambda d: d.update(metrics=None), lambda d: d.update(metrics={"val_psnr": "x"}), lambda d: d.update(epoch="x"),
])  # fmt: skip
@pytest.mark.parametrize("name", ["model.safetensors", "last.safetensors"])
def test_models_shows_any_figures_or_none(run, name, change):
    rewrite(run / name, change)
    ok("models", "--runs", "mine")
    ok_json("models", "--runs", "mine")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "last.safetensors"])
def test_a_pipe_among_a_runs_files_is_not_waited_for(run, name):
    (run / name).unlink()
    os.mkfifo(run / name)
    with at_most(20):
        assert fails(1, "train", "vae", *TRAIN, "--out", run) if name != "model.safetensors" else True
        assert fails(1, "reconstruct", "--model", run, "--out", "x") if name != "last.safetensors" else True
        ok("models", "--runs", "mine")


@contextmanager
def at_most(seconds):
    """Fail, rather than wait for ever."""

    def give_up(number, frame):
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", ["folder", "loop of links", "empty", "device"])
def test_what_is_no_file_of_weights_is_refused(run, kind):
    path = run / "model.safetensors"
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "loop of links":
        path.symlink_to(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.touch()
    with at_most(20):
        assert str(run) in fails(1, "reconstruct", "--model", run, "--out", "x")
        ok("models", "--runs", "mine")


def test_a_files_name_does_not_lead_out_of_the_folder_of_reconstructions(trained):
    shutil.copy("runs/vae/model.safetensors", "...safetensors")
    assert ok_json("reconstruct", "--model", "...safetensors", "--data", "images")["out"] == "reconstructions/model"


def test_a_runs_weights_of_another_model_are_refused(run):
    shutil.copy("runs/ae/model.safetensors", run / "model.safetensors")
    assert "holds a model 'ae', not vae" in fails(1, "reconstruct", "--model", "vae", "--runs", "mine", "--out", "x")
