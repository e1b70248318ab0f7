"""Weights that aecli didn't write: pickles, names behind a prefix, and files that say nothing of their images."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import aecli
from aecli.errors import CheckpointError
from aecli.inference.loaded_model import load_model
from aecli.progress import Notice
from aecli.runs import checkpoints
from tests.support.plain_models import build
from tests.support.trained import fails, invoke, ok, png


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """The weights of a small VAE, in a working folder of their own."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return build("vae", width=2).state_dict()


def assert_same(model, weights):
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def prefixed(weights, prefix):
    return {prefix + key: value for key, value in weights.items()}


@pytest.mark.parametrize(
    ("name", "wrap", "is_zip"),
    [
        ("m.pth", lambda weights: weights, True),
        ("m.pt", lambda weights: weights, False),
        ("m.safetensors", lambda weights: weights, True),
        ("it's.ckpt", lambda weights: {"epoch": 3, "state_dict": prefixed(weights, "model.")}, True),
        ("best.tar", lambda weights: {"model": weights, "optimizer": {"lr": 1.0}}, True),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a file is left to be closed
def test_the_lines_that_are_told_of_a_pickle_convert_it(weights, name, wrap, is_zip):
    weights["encoder.0.weight"] = weights["encoder.0.weight"].contiguous(memory_format=torch.channels_last)
    torch.save(wrap(weights), name, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CheckpointError, match="is a pickle.*can run any code") as caught:
        checkpoints.load_model(Path(name))
    _, hint, *lines = str(caught.value).splitlines()
    converted = hint.rpartition("--model ")[2].rstrip(":")
    assert len(lines) == 2 and not Path(converted).exists()
    exec("\n".join(lines), {})
    assert_same(checkpoints.load_model(Path(converted))[0], weights)


def test_a_pickle_is_never_opened(weights, monkeypatch):
    class Trap:
        def __reduce__(self):
            return sys.exit, ("opened",)

    torch.save(Trap(), "trap.pth")
    result = invoke("reconstruct", "--model", "trap.pth", "--data", ".")
    assert result.exit_code == 1 and "trap.pth is a pickle" in result.stderr
    with pytest.raises(aecli.AecliError, match="is a pickle"):
        aecli.load("trap.pth")


@pytest.mark.parametrize("content", [b"PK\x03\x04 a zip of something", b"\x80\x02\0\0\0\0\0\0{}", b"\x80", b"text"])
def test_other_files_are_not_called_pickles(weights, content):
    Path("m.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        checkpoints.load_model(Path("m.safetensors"))


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "net.model._orig_mod.", "my.own\x1b."])
def test_a_prefix_of_all_names_is_left_off_and_told(weights, prefix):
    save_file(prefixed(weights, prefix), "m.safetensors")
    told = []
    model, _ = checkpoints.load_model(Path("m.safetensors"), listen=told.append)
    assert_same(model, weights)
    (notice,) = told
    assert isinstance(notice, Notice) and prefix.replace("\x1b", "\\x1b") in notice.text and notice.text.isprintable()


def test_nothing_is_told_of_names_without_a_prefix(weights):
    save_file(weights, "m.safetensors")
    told = []
    checkpoints.load_model(Path("m.safetensors"), listen=told.append)
    assert told == []


def test_what_does_not_fit_is_listed_at_most_five_and_counted(weights):
    weights["encoder.3.weight"] = torch.zeros(3, 1)
    del weights["decoder.0.bias"]
    save_file(prefixed(weights, "module.") | {"loss.scale": torch.zeros(1)}, "m.safetensors")
    with pytest.raises(CheckpointError, match=r"does not fit model 'vae' in 3 weights") as caught:
        checkpoints.load_model(Path("m.safetensors"))
    for said in ("decoder.0.bias: missing", "encoder.3.weight: 3×1 in the file", "loss.scale: left over"):
        assert said in str(caught.value)
    save_file({key: value for key, value in weights.items() if key.startswith("encoder.")}, "m.safetensors")
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load_model(Path("m.safetensors"))
    assert str(caught.value).count("missing") == 4 and "; and 33 more" in str(caught.value)


def test_weights_of_something_else_are_told_by_their_names(weights):
    save_file({"\x1b[2J": torch.zeros(1), "b": torch.zeros(1)}, "m.safetensors")
    with pytest.raises(CheckpointError, match=r"no weights of an aecli model: 2 tensors \(\\x1b\[2J, b\)"):
        checkpoints.load_model(Path("m.safetensors"))


def test_an_image_size_that_is_assumed_is_told_and_may_be_named(trained):
    save_file(load_file(trained / "runs/vae/model.safetensors"), "m.safetensors")  # without aecli's document
    args = ["reconstruct", "--model", "m.safetensors", "--data", "images/i1.png", "--overwrite", "--out", "out"]
    assert "assuming --image-size 256 and --fit squash" in ok(*args).stderr
    assert png(trained / "out/i1.png").shape == (256, 256, 3)
    assert "assuming" not in ok(*args, "--image-size", "32", "--fit", "squash").stderr
    ok("reconstruct", "--model", "vae", "--data", "images/i1.png", "--out", "as_trained")
    assert (png(trained / "out/i1.png") == png(trained / "as_trained/i1.png")).all()


def test_another_image_size_than_the_runs_is_told(trained):
    args = ["reconstruct", "--model", "vae", "--data", "images", "--out", "out"]
    told = ok(*args, "--image-size", "64", "--fit", "crop").stderr
    assert "--image-size 64: runs/vae/model.safetensors was trained with 32" in told and "--fit crop" in told
    assert png(trained / "out/i1.png").shape == (64, 64, 3)
    assert "multiple of 32" in fails(2, *args, "--image-size", "48")
    assert "no --native" in fails(2, *args, "--image-size", "64", "--native")
    loaded = load_model("vae", Path("runs"), image_size=64)
    assert (loaded.image_size, loaded.fit) == (64, "squash")
