"""What users of other tools type, runs by their folder's name, and the command to type next."""

import shlex

import pytest
import typer

from aecli.cli import signposts
from aecli.cli.app import app
from aecli.errors import ConfigError
from tests.support.trained import TRAIN, fails, invoke, ok, ok_json, pngs

FLAGS = {
    name: {flag for each in command.params for flag in each.opts}
    for name, command in typer.main.get_command(app).commands.items()
}


def hint_of(status, *args):
    """The hint of `aecli` with `args`, which must fail in two lines."""
    problem, hint = fails(status, *args).splitlines()
    assert hint.startswith("hint: ")
    return problem, hint.removeprefix("hint: ")


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("train vae --resume", "the command that began a run goes on with it, typed again as it was"),
        ("train vae --n-epochs 3", "--epochs 3"), ("train vae -e 3", "--epochs 3"),
        ("train vae --epoch=3", "--epochs 3"), ("train vae --val 0.2", "--val-data 0.2"),
        ("train vae --batch_size 4", "--batch-size 4"), ("train vae --bs 4", "--batch-size 4"),
        ("train vae --learning-rate 1e-3", "--lr 1e-3"), ("train vae --lr_rate 1e-3", "--lr 1e-3"),
        ("train vae --gpu 0", "--device cuda"), ("train vae --gpus 2", "--device cuda"),
        ("train vae --cpu", "--device cpu"), ("train vae --num-workers 2", "--workers 2"),
        ("train vae --name a", "--out a"), ("train vae --project p", "--runs p"),
        ("train vae --dataset 'my photos'", "--data 'my photos'"), ("train vae --imgsize 64", "--image-size 64"),
        ("train vae --amp", "--precision fp16"), ("train vae --wandb", "--log tensorboard"),
        ("reconstruct --ckpt m.safetensors", "--model m.safetensors"), ("reconstruct -o out", "--out out"),
        ("reconstruct --input photos", "--data photos"), ("eval --real a --fake b", "--gt a"),
        ("sample --num_samples 9", "--n 9"), ("grid --version", "aecli --version"), ("-V", "aecli --version"),
        ("resume", "the command that began a run"), ("resume absent", "the command that began a run"),
        ("test", "aecli eval --gt"), ("infer --model vae", "aecli reconstruct --model"),
        ("evaluate", "aecli eval"), ("predict", "aecli reconstruct"), ("generate", "aecli sample"),
        ("vae --epochs 3", "aecli train vae --epochs 3"), ("train vae -o folder", "--out"),
    ],
)  # fmt: skip
def test_what_other_tools_call_it_is_named(typed, hint):
    assert hint in hint_of(2, *shlex.split(typed))[1]


@pytest.mark.parametrize("command", FLAGS)
def test_only_options_that_the_command_has_are_named(command):
    named = 0
    for names in signposts._OPTIONS:
        for name in names.split():
            flag = f"-{name}" if len(name) == 1 else f"--{name}"
            try:
                signposts.check_options(command, [flag, "5"], FLAGS[command])
            except ConfigError as error:
                hint = str(error).split("hint: ")[1].split()[0]
                assert not hint.startswith("--") or hint in FLAGS[command], f"{flag}: {hint}"
                named += 1
    assert named > (9 if command == "compare" else 20)  # which has few options of its own


def test_an_option_of_its_own_or_behind_two_dashes_is_none_of_another_tool():
    signposts.check_options("train", ["--lr", "1", "--", "--resume"], {"--lr"})
    assert "No such option" in invoke("train", "vae", "--frobnicate").stderr


# Runs


def test_a_run_is_found_by_the_name_of_its_folder(own):
    (own / "runs/ae").rename(own / "runs/mine")
    assert len(pngs_of(own, "mine", "one")) == 3
    assert len(pngs_of(own, "runs/mine", "two")) == 3
    assert ok_json("grid", "--model", "mine", "--n", "1")["rows"] == ["Ground Truth", "AE"]
    (own / "runs").rename(own / "elsewhere")
    assert ok_json("grid", "--model", "mine", "--n", "1", "--runs", "elsewhere")["rows"] == ["Ground Truth", "AE"]
    assert "not a model, a run folder" in fails(1, "grid", "--model", "mine")


def pngs_of(place, model, out):
    ok("reconstruct", "--model", model, "--out", out)
    return pngs(place / out)


@pytest.mark.parametrize("file", ["config.json", "metrics.csv", "previews/epoch-0001.png"])
def test_a_file_of_a_run_means_the_run(trained, file):
    assert ok_json("grid", "--model", f"runs/vae/{file}", "--n", "1")["rows"] == ["Ground Truth", "VAE"]


def test_a_training_state_is_told_from_a_model(trained):
    problem, hint = hint_of(1, "grid", "--model", "runs/vae/last.safetensors")
    assert "training state" in problem and hint == "runs/vae/model.safetensors"


@pytest.mark.parametrize("typed", ["runs/mine", "mine", "runs/mine/config.json"])
def test_a_run_that_is_to_be_trained_is_gone_on_with(own, typed):
    (own / "runs/vae").rename(own / "runs/mine")
    _, hint = hint_of(1, "train", typed)
    command = shlex.split(hint.partition(": ")[2].partition("; ")[0])
    assert command[0] == "aecli"
    assert "runs/mine was finished already: 2 epochs" in ok(*command[1:]).stdout
    assert ok_json(*command[1:], "--epochs", "3")["epochs"] == 3
    assert shlex.split(hint_of(2, "resume", typed)[1]) == command


# The next command

PRIOR = ["train", "prior", "--model", "vae", "--width", "32", "-o", "depth=1"]


def next_of(result):
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Next: ")]
    return shlex.split(line.removeprefix("Next: "))


def test_what_is_typed_next_after_training_works(workplace):
    for args, shown in (
        (["--runs", "runs"], "aecli grid --n 10"),
        (["--runs", "others"], "aecli grid --n 10 --runs others"),
        (["--out", "a b"], "aecli grid --n 10 --model 'a b'"),
        (["--val-fraction", "0", "--runs", "none"], "aecli grid --n 10 --runs none --data images"),
    ):
        command = next_of(ok("train", "ae", *TRAIN, "--epochs", "1", *args))
        assert shlex.join(command) == shown
        assert "Ground Truth, AE" in ok(*command[1:]).stdout
    assert "Next" not in ok("train", "ae", *TRAIN, "--epochs", "1", "--quiet").stderr


def test_what_is_typed_next_after_reconstructing_measures_it(trained):
    for args, images in (([], 3), (["--data", "images"], 12), (["--data", "images", "--split", "train"], 9)):
        command = next_of(ok("reconstruct", "--model", "vae", "--out", f"out{images}", *args))
        assert ok_json(*command[1:], "--metrics", "psnr")["n"] == images
    command = next_of(ok("reconstruct", "--model", "vae", "--native", "--out", "whole", "--split", "all"))
    assert ok_json(*command[1:], "--metrics", "psnr")["n"] == 12


def test_after_a_prior_comes_sampling_from_it(own):
    command = next_of(ok(*PRIOR, "--steps", "2", "--batch-size", "4"))
    assert shlex.join(command) == "aecli sample --model vae --prior flow"
    ok(*command[1:], "--n", "1", "--steps", "1")
