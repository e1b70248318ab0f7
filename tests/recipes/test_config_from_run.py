"""`train --config RUN`: a run repeated from its folder."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from aecli.configs.train import OptimizationConfig
from aecli.recipes.layering import layer
from tests.support.trained import fails, ok, write_images

BEGUN = ["train", "vae", "--data", "images", "--image-size", "32", "--width", "2", "-o", "beta=0.001",
         "--batch-size", "4", "--epochs", "2", "--flip", "--seed", "3", "--device", "cpu", "--cache", "off",
         "--quiet"]  # fmt: skip


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    place = tmp_path_factory.mktemp("begun")
    write_images(place / "images", list("abcdefghijk"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        ok(*BEGUN)
    return place


@pytest.fixture
def place(begun, tmp_path, monkeypatch):
    """A working folder with a copy of the finished run, which was trained on the images of another folder."""
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def options(run):
    return json.loads((run / "config.json").read_text())["options"]


@pytest.mark.parametrize("config", ["runs/vae", "runs/vae/config.json"])
def test_the_same_run_elsewhere(place, config):
    ok("train", "vae", "--config", config, "--out", "again", "--quiet")
    one, other = (load_file(place / run / "model.safetensors") for run in ("runs/vae", "again"))
    assert all(torch.equal(one[key], other[key]) for key in one) and len(one) > 10
    before, after = options(place / "runs" / "vae"), options(place / "again")
    differing = {key for key in before if before[key] != after[key]}
    assert differing <= {"out", "model_defaults"}


def test_in_its_own_folder_it_is_finished_and_flags_win(place):
    assert "was finished already" in ok("train", "vae", "--config", "runs/vae").stdout
    ok("train", "vae", "--config", "runs/vae", "--lr", "0.002", "--beta", "0.1", "--quiet")
    changed = options(place / "runs" / "vae-2")
    assert (changed["lr"], changed["options"]["beta"], changed["seed"]) == (0.002, 0.1, 3)


def test_steps_and_validation_images_of_its_own(place):
    ok("train", "ae", "--data", "images", "--val-data", "images", "--steps", "3", *BEGUN[4:8], *BEGUN[10:12],
       "--device", "cpu", "--cache", "off", "--quiet")  # fmt: skip
    ok("train", "ae", "--config", "runs/ae", "--out", "again", "--quiet")
    assert options(place / "again")["steps"] == 3 and options(place / "again")["val_data"] == str(place / "images")


def test_what_can_not_be_repeated_is_refused(place):
    assert "a run of vae, not of ae" in fails(2, "train", "ae", "--config", "runs/vae")
    assert "--config images" in fails(2, "train", "vae", "--config", "images")
    file = place / "runs" / "vae" / "config.json"
    whole = file.read_text()
    file.write_text(whole[:-100])
    assert "damaged" in fails(1, "train", "vae", "--config", "runs/vae")
    file.write_text(whole.replace('"schema": 1', '"schema": 99'))
    assert "config.json" in fails(1, "train", "vae", "--config", "runs/vae")
    file.write_text(whole.replace('"lr": 0.0001', '"lr": "fast"'))
    assert "--lr 'fast'" in fails(2, "train", "vae", "--config", "runs/vae/config.json")
    file.write_text(whole.replace('"lr": ', '"rate": '))  # an option that a newer aecli has
    repeated = layer("vae", {}, file).optimization
    assert repeated.lr == OptimizationConfig.lr
