"""Training on images given in Python: what it is equal to, when it resumes, and what the command line says of it."""

import json

import numpy as np
import pytest
from PIL import Image

import aecli
from aecli.configs import ReconstructConfig
from aecli.errors import CheckpointError, DataError
from aecli.inference.reconstruct import reconstruct
from tests.support.images import picture, save_image
from tests.support.trained import assert_same_run, fails, png

STACK = np.stack([picture(32, 40, seed) for seed in range(14)])
OPTIONS = {"image_size": 32, "batch_size": 3, "options": {"width": 2}, "device": "cpu", "precision": "fp32",
           "cache": "off", "val_fraction": 0.3}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, no_pictures):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(data, **options):
    """Train to the end; returns the last report."""
    *_, last = aecli.train(aecli.TrainConfig("vae", data=data, **{"epochs": 1, **OPTIONS, **options}))
    return last


class Items:
    def __len__(self):
        return len(STACK)

    def __getitem__(self, index):
        return Image.fromarray(STACK[index]), index


@pytest.fixture
def folder(here):
    """The images as files under their names as items."""
    for index, pixels in enumerate(STACK):
        save_image(here / f"images/{index:06d}.png", pixels)
    return here / "images"


def test_it_is_training_on_the_files_of_the_same_names(here, folder):
    train(folder, out="files")
    for name, data in {"array": STACK, "dataset": Items(), "paths": sorted(folder.iterdir())[::-1]}.items():
        train(data, out=name)
        assert_same_run(here / "files", here / name)


def test_a_run_resumes_with_the_same_images_and_no_others(here):
    train(STACK, out="whole", epochs=2)
    assert train(STACK).run.path.name == "vae"
    assert train(STACK.copy(), epochs=2).epochs == 2
    assert_same_run(here / "whole", here / "runs/vae")
    assert train(STACK, epochs=2).was_finished
    other = STACK.copy()
    other[0, 0, 0, 0] ^= 1
    assert train(other, epochs=2).run.path.name == "vae-2"
    with pytest.raises(CheckpointError, match="^--data python:.*not the images that whole was trained on"):
        train(other, out="whole", epochs=2)


def test_its_config_says_what_it_was(here):
    train(STACK, val_data=list(STACK[:3]), out="run")
    config = json.loads((here / "run/config.json").read_text())
    assert config["options"]["data"].startswith("python:array of 14 images 32×40 (")
    assert config["options"]["val_data"].startswith("python:list of 3 pictures (")
    assert config["data"]["source"] == config["options"]["data"] and config["data"]["images"] == 14
    assert config["data"]["fingerprint"][:16] in config["options"]["data"]


def test_the_command_line_says_that_its_images_were_given_in_python(here):
    train(STACK, out="run")
    assert "was trained on images given in Python (array of 14 images" in fails(1, "train", "vae", "--out", "run")
    for args in (["reconstruct", "--model", "run"], ["train", "vae", "--config", "run", "--out", "new"]):
        assert "array of 14 images 32×40" in (message := fails(1, *args)) and "given in Python" in message
    assert not (here / "new").exists()


def test_models_take_them_too(here, folder):
    train(STACK, out="run")
    reconstruct(ReconstructConfig("run", data=STACK[:4], out="of_array"))
    reconstruct(ReconstructConfig("run", data=folder, out="of_files"))
    for name in ("000000.png", "000003.png"):
        assert np.array_equal(png(here / "of_array" / name), png(here / "of_files" / name))
    assert len(list((here / "of_array").iterdir())) == 4


def test_items_are_refused_before_anything_is_written(here):
    with pytest.raises(DataError, match="item 0"):
        train(range(5), out="run")
    assert list(here.iterdir()) == []
