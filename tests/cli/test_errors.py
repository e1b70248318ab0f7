"""Failures that the program understands: exit status, and one or two lines that name the flag or file, and a hint."""

import json
import os

import pytest
import torch

from tests.support.trained import JOBS, TRAIN, fails, invoke, ok, pngs, write_images


@pytest.mark.parametrize("command", [name for name in JOBS if name != "compare"])  # it computes with no model
def test_a_device_that_is_not_here_is_refused(trained, command, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    message = fails(1, *JOBS[command], "--device", "cuda")
    assert "--device cuda" in message and "--device cpu" in message


# Models by name


@pytest.mark.parametrize("args", [["train", "vea"], ["train", "VAE"], ["reconstruct", "--model", "vea"]], ids=" ".join)
def test_an_unknown_model_brings_the_one_that_was_meant(trained, args):
    message = fails(1, *args)
    assert args[-1] in message and "did you mean vae?" in message


def test_a_module_that_fails_on_import_is_named(workplace, monkeypatch):
    monkeypatch.syspath_prepend(workplace)
    (workplace / "needy.py").write_text("import absent_dependency")
    assert "absent_dependency" in fails(1, "train", "needy:Model")


@pytest.mark.parametrize("flag", ["--beta", "--option"])
def test_an_option_that_the_model_lacks_is_named_as_it_was_typed(workplace, flag):
    value = "beta=1" if flag == "--option" else "1"
    message = fails(2, "train", "ae", *TRAIN, flag, value)
    assert f"{flag} beta" in message if flag == "--option" else "--beta" in message
    assert "width" in message


# Data


@pytest.mark.parametrize("source", ["absent", "empty", "notes", "notes/a.txt", "nowhere:x/y", "torchvision:Nope"])
@pytest.mark.parametrize("command", ["train", "reconstruct", "encode", "grid", "eval"])
def test_a_source_without_images_is_named(trained, command, source):
    (trained / "empty").mkdir()
    (trained / "notes").mkdir()
    (trained / "notes/a.txt").write_text("no image")
    flag = "--gt" if command == "eval" else "--data"
    message = fails(1, *JOBS[command], flag, source)
    assert source in message
    assert not {"reconstructions", "latents", "new"} & {path.name for path in trained.iterdir()}


def test_nothing_is_said_to_begin_when_the_data_is_missing(trained):
    result = invoke("train", "vae", *TRAIN, "--data", "absent")
    assert result.exit_code == 1
    assert "beginning" not in result.stderr


def test_images_that_all_fail_to_decode_are_named(workplace):
    (workplace / "bad").mkdir()
    (workplace / "bad/a.png").write_bytes(b"no image")
    assert "a.png" in fails(1, "train", "vae", *TRAIN, "--data", "bad")
    assert not (workplace / "runs").exists()


def test_an_unreadable_image_is_named_and_the_others_written(trained):
    write_images(trained / "some", ["a", "b"])
    (trained / "some/b.png").write_bytes(b"no image")
    result = invoke("reconstruct", "--model", "ae", "--data", "some", "--out", "out", "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert (document["written"], list(document["unreadable"])) == (1, ["b.png"])
    assert result.stderr.startswith("Error: 1 image") and "b.png" in result.stderr
    assert result.stderr.count("b.png") == 1
    assert pngs(trained / "out") == ["a"]


def test_a_grid_passes_over_what_it_cannot_read_and_says_so(trained):
    write_images(trained / "some", ["a", "b"])
    (trained / "some/a.png").write_bytes(b"no image")
    result = invoke("grid", "--data", "some", "--n", "2")
    assert result.exit_code == 0
    assert "Note: skipped a.png: not a PNG" in result.stderr
    (trained / "some/b.png").write_bytes(b"no image")
    assert "none of the 2 images" in fails(1, "grid", "--data", "some")


# Runs


@pytest.mark.parametrize("command", ["reconstruct", "encode", "decode", "sample", "grid"])
def test_without_a_run_the_command_that_makes_one_is_named(workplace, command):
    message = fails(1, *JOBS[command])
    assert "under runs" in message and "aecli train vae" in message


def test_out_holds_a_run_with_other_options_which_is_named(workplace):
    ok("train", "vae", *TRAIN, "--out", "here")
    before = {path: path.stat().st_mtime_ns for path in (workplace / "here").rglob("*")}
    for flag, was, now in (
        ("--lr", "0.0001", "0.01"),
        ("--width", "4", "5"),
        ("--beta", "2.5e-05", "1.0"),
        ("--fit", "squash", "crop"),
        ("--seed", "1", "2"),
        ("--batch-size", "3", "5"),
    ):
        message = fails(1, "train", "vae", *TRAIN, "--out", "here", flag, now)
        assert f"{flag} {was}" in message and now in message and "--restart" in message
    assert "--flip" in fails(1, "train", "vae", *TRAIN, "--out", "here", "--flip")
    assert "model" in fails(1, "train", "ae", *TRAIN, "--out", "here")
    assert "--epochs 1" in fails(1, "train", "vae", *TRAIN, "--out", "here", "--epochs", "1")
    assert {path: path.stat().st_mtime_ns for path in (workplace / "here").rglob("*")} == before


def test_fewer_epochs_than_a_run_has_are_another_run(own):
    result = ok("train", "vae", *TRAIN, "--epochs", "1")
    assert "--epochs 2" in result.stderr and "vae-2" in result.stdout


# Numbers and memory


def test_a_run_that_diverges_is_an_error_with_a_hint(workplace):
    """One step an epoch: the first epoch's train loss is finite, its validation loss is not."""
    message = fails_after_progress("train", "vae", *TRAIN, "--batch-size", "16", "--lr", "1e30")
    assert "not a finite number" in message and "--lr" in message


def fails_after_progress(*args):
    result = invoke(*args)
    assert (result.exit_code, result.stdout) == (1, "")
    return result.stderr.partition("Error: ")[2]


@pytest.mark.parametrize("command", ["train", "reconstruct", "sample", "grid"])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried."),
    ],
    ids=["cuda", "cpu"],
)
def test_a_device_out_of_memory_is_an_error(trained, command, error, monkeypatch):
    def run_out(self, *args):
        raise error

    monkeypatch.setattr("aecli.models.vae.VAE.decode", run_out)
    message = fails_after_progress(*JOBS[command])
    assert "memory" in message
    assert "--batch-size" in message or command not in ("train", "reconstruct")


# Places to write to


def test_a_restart_takes_no_folder_that_is_not_a_run(trained):
    assert "images" in fails(1, "train", "vae", *TRAIN, "--restart", "--out", "images")
    assert not list((trained / "images").glob("*.*s*"))


def test_a_full_disk_is_an_error_and_leaves_no_half_of_a_file(trained, monkeypatch):
    (trained / "grid.png").write_text("old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for command in ("grid", "reconstruct", "encode", "decode", "sample", "train"):
        assert "No space left on device" in fails(1, *JOBS[command])
    assert (trained / "grid.png").read_text() == "old"
    assert list(trained.rglob("*.tmp")) == []
