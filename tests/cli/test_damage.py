"""Checkpoints and run folders that are damaged, foreign or hostile."""

import json
import shutil
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.support.trained import NAMES, TRAIN, fails, ok, ok_json, pngs, rewrite

# The document of a checkpoint


@pytest.mark.parametrize("model", ["ae", "vae"])
def test_metadata_is_one_document_beside_the_format(trained, model):
    with safe_open(f"runs/{model}/model.safetensors", framework="pt") as file:
        found = file.metadata()
    assert set(found) == {"format", "aecli"} and found["format"] == "pt"
    document = json.loads(found["aecli"])
    assert set(document) == {"schema", "model", "options", "image_size", "fit", "background", "epoch", "metrics"}
    assert (document["schema"], document["model"], document["image_size"], document["fit"]) == (1, model, 32, "squash")
    assert document["options"]["width"] == 4
    best = ok_json("train", model, *TRAIN)
    assert (document["epoch"], document["metrics"]) == (best["best_epoch"], best["best"])
    assert list(load_file(f"runs/{model}/model.safetensors"))  # nothing but safetensors is needed to read it


# Files that are not whole, or not ours


@pytest.mark.parametrize("length", [0, 4, 8, 3000, 100_000])
def test_a_file_cut_short_is_refused(run, length):
    path = run / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    assert str(path) in fails(1, "reconstruct", "--model", str(run), "--out", "x")


@pytest.mark.parametrize("content", [b"\xff" * 4096, b"\x10\0\0\0\0\0\0\0" + b"[" * 16, b"PK\x03\x04" * 99])
def test_what_is_no_safetensors_file_is_refused(trained, content):
    (trained / "w.safetensors").write_bytes(content)
    assert "w.safetensors" in fails(1, "reconstruct", "--model", "w.safetensors", "--data", "images")
    (trained / "w.pth").write_bytes(content)
    assert "w.pth" in fails(1, "grid", "--model", "w.pth", "--data", "images")


def test_weights_of_another_program_are_refused(trained):
    save_file({"conv.weight": torch.zeros(3, 3)}, "w.safetensors")
    assert "no weights of an aecli model" in fails(1, "sample", "--model", "w.safetensors")
    save_file(
        {"encoder.0.weight": torch.zeros(4, 3, 4, 4), "decoder.0.weight": torch.zeros(0, 1, 4, 4)}, "w.safetensors"
    )
    assert "w.safetensors" in fails(1, "sample", "--model", "w.safetensors")


def test_a_bare_state_dict_of_the_reports_architecture_serves(trained):
    save_file(load_file("runs/vae/model.safetensors"), "w.safetensors")
    ok("reconstruct", "--model", "w.safetensors", "--data", "images", "--native", "--out", "a")
    ok("reconstruct", "--model", "runs/vae", "--data", "images", "--native", "--out", "b")
    for name in pngs(trained / "a"):
        assert (trained / f"a/{name}.png").read_bytes() == (trained / f"b/{name}.png").read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_serve(trained, dtype):
    """Half precision is how weights are passed around."""
    tensors = load_file("runs/vae/model.safetensors")
    save_file(
        {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()},
        "w.safetensors",
    )
    ok("reconstruct", "--model", "w.safetensors", "--data", "images", "--native", "--out", "a")
    assert pngs(trained / "a") == sorted(NAMES)


def test_weights_that_are_integers_are_refused(trained):
    tensors = load_file("runs/vae/model.safetensors")
    save_file({key: value.to(torch.int64) for key, value in tensors.items()}, "w.safetensors")
    assert "w.safetensors" in fails(1, "reconstruct", "--model", "w.safetensors", "--data", "images")


def test_last_is_distinguished_from_model(trained):
    message = fails(1, "reconstruct", "--model", "runs/vae/last.safetensors")
    assert "last.safetensors" in message and "model.safetensors" in message


# Invalid documents


CHANGES = {
    "a list": lambda d: [d],
    "empty": lambda d: {},
    **{f"without {key}": lambda d, key=key: d.pop(key) and None for key in ("model", "image_size", "fit")},
    **{f"{key} {value!r}": lambda d, key=key, value=value: d.update({key: value}) for key, value in [
        ("schema", 99), ("schema", "1"), ("model", "ae"), ("model", "nope"), ("model", ["vae"]), ("options", ["width"]),
        ("options", 3), ("image_size", "big"), ("image_size", None), ("image_size", 0), ("image_size", -32),
        ("image_size", 33), ("image_size", 32 * 10**9), ("fit", "stretch"),
    ]},
    **{f"option {key} {value!r}": lambda d, key=key, value=value: d["options"].update({key: value}) for key, value in [
        ("width", 5), ("width", 4096), ("width", "x"), ("depth", 3),
    ]},
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_an_invalid_document_of_a_checkpoint_is_refused(run, change):
    rewrite(run / "model.safetensors", CHANGES[change])
    assert "model.safetensors" in fails(1, "reconstruct", "--model", str(run), "--out", "x")


@pytest.mark.parametrize("damage", ["tensor missing", "cut short"])
def test_a_damaged_state_is_refused_with_a_hint_at_restart(run, damage):
    file = run / "last.safetensors"
    tensors = load_file(file)
    if damage == "tensor missing":
        del tensors["model.encoder.0.weight"]
        rewrite(file, lambda d: None, tensors)
    else:
        file.write_bytes(file.read_bytes()[:1000])
    size = file.stat().st_size
    command = ["train", "vae", *TRAIN, "--runs", "mine", "--epochs", "3"]
    message = fails(1, *command)
    assert "last.safetensors" in message and "--restart" in message
    assert file.stat().st_size == size
    assert ok_json(*command, "--epochs", "1", "--restart")["run"] == "mine/vae"


# Code is imported on the user's word only

OWN_MODEL = """
from pathlib import Path
Path("imported").touch()
from examples.custom_model import ResidualAE as Own
"""


@pytest.fixture
def own_model(trained, monkeypatch):
    """A run of `own_model_under_test:Own`, whose import leaves a trace."""
    (trained / "own_model_under_test.py").write_text(OWN_MODEL)
    monkeypatch.syspath_prepend(trained)
    options = [arg for arg in TRAIN if arg not in ("--width", "4")]
    ok("train", "own_model_under_test:Own", *options, "--epochs", "1", "-o", "channels=2", "--runs", "mine", "--quiet")
    (trained / "imported").unlink()
    del sys.modules["own_model_under_test"]
    yield trained
    sys.modules.pop("own_model_under_test", None)


@pytest.mark.parametrize("model", ["mine/own", "mine/own/model.safetensors", "bare.safetensors"])
def test_a_class_named_by_a_file_is_not_imported(own_model, model):
    shutil.copy("mine/own/model.safetensors", "bare.safetensors")
    for args in (["reconstruct", "--out", "x", "--data", "images"], ["grid", "--data", "images"], ["sample"]):
        message = fails(1, *args, "--model", model)
        assert "own_model_under_test:Own" in message
    ok("models", "--runs", "mine")
    assert not (own_model / "imported").exists()


def test_a_class_named_by_the_user_is(own_model):
    ok("reconstruct", "--model", "own_model_under_test:Own", "--runs", "mine", "--out", "x")
    assert (own_model / "imported").exists()


# Run folders


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"3", b"\xff", b'{"model": {"name": "vae"}}', b'{"model": 3, "options": {}}',
        b'{"schema": 1, "schema": 1}', 10**5 * b"[" + 10**5 * b"]", b'{"schema": ' + b"1" * 5000 + b"}",
    ],
    ids=lambda content: str(content[:12]),
)  # fmt: skip
def test_a_damaged_config_is_refused(run, content):
    (run / "config.json").write_bytes(content)
    for args in (["reconstruct", "--model", str(run), "--out", "x"], ["train", "vae", *TRAIN, "--out", str(run)]):
        assert "config.json" in fails(1, *args)


def test_a_folder_of_another_program_among_the_runs_stops_nothing(run):
    """A `config.json` is what many programs write."""
    (run.parent / "other").mkdir()
    (run.parent / "other/config.json").write_text('{"architectures": ["CLIP"]}')
    ok("reconstruct", "--model", "vae", "--runs", "mine", "--out", "x")
    ok("grid", "--runs", "mine")
    ok("models", "--runs", "mine")
    ok("train", "vae", *TRAIN, "--runs", "mine")


def test_a_run_whose_images_are_gone_is_an_error(run):
    config = json.loads((run / "config.json").read_text())
    config["options"]["data"] = "/absent/images"
    (run / "config.json").write_text(json.dumps(config))
    message = fails(1, "reconstruct", "--model", str(run), "--out", "x")
    assert "/absent/images" in message


def test_a_run_without_a_finished_epoch_is_an_error(run):
    (run / "model.safetensors").unlink()
    assert "epoch" in fails(1, "reconstruct", "--model", str(run), "--out", "x")
    assert "aecli train vae" in fails(1, "reconstruct", "--model", "vae", "--runs", "mine", "--out", "x")
