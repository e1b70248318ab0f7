"""`train --log tensorboard`, read by TensorBoard's own reader."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from aecli.configs import TrainConfig
from aecli.training.events import EpochReport, Interrupted
from aecli.training.loop import train
from tests.support.trained import fails, ok, rows, write_images

pytestmark = [
    pytest.mark.filterwarnings("default"),  # of TensorBoard's own packages
    pytest.mark.usefixtures("no_pictures"),
]


@pytest.fixture
def options(tmp_path):
    write_images(tmp_path / "images", list("0123456789"))
    return ["train", "vae", "--data", tmp_path / "images", "--image-size", 32, "--width", 2, "--batch-size", 4,
            "--device", "cpu", "--cache", "off", "--quiet"]  # fmt: skip


def read(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return events


@pytest.mark.draws
def test_numbers_pictures_and_options(tmp_path, options):
    ok(*options, "--epochs", 3, "--log", "tensorboard", "--out", tmp_path / "run")
    events = read(tmp_path / "run")
    for tag, column in (("loss/training", "train_loss"), ("loss/validation", "val_loss"), ("learning rate", "lr"),
                        ("validation/PSNR", "val_psnr"), ("validation/SSIM", "val_ssim")):  # fmt: skip
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        expected = [(int(row["step"]), float(row[column])) for row in rows(tmp_path / "run")]
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert np.allclose([value for _, value in found], [value for _, value in expected], rtol=1e-6)
    shown = events.Images("preview")[-1]
    with Image.open(tmp_path / "run" / "previews" / "epoch-0003.png") as preview:
        assert (shown.width, shown.height) == preview.size
    assert '"width": 2' in events.Tensors("options/text_summary")[0].tensor_proto.string_val[0].decode()


def test_a_resumed_run_has_no_point_twice(tmp_path, options):
    where = {"data": str(tmp_path / "images"), "image_size": 32, "options": {"width": 2}, "batch_size": 4,
             "device": "cpu", "cache": "off", "log": "tensorboard", "out": tmp_path / "run"}  # fmt: skip
    reports = []
    for report in train(
        TrainConfig("vae", epochs=6, **where), lambda: sum(isinstance(r, EpochReport) for r in reports) == 3
    ):
        reports.append(report)
    assert isinstance(reports[-1], Interrupted)
    ok(*options, "--epochs", 6, "--log", "tensorboard", "--out", tmp_path / "run")
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 2
    steps = [event.step for event in read(tmp_path / "run").Scalars("loss/validation")]
    assert steps == [int(row["step"]) for row in rows(tmp_path / "run")] and len(steps) == 6
    ok(*options, "--epochs", 1, "--log", "tensorboard", "--out", tmp_path / "run", "--restart")
    assert len(read(tmp_path / "run").Scalars("loss/validation")) == 1


def test_the_run_is_the_same_with_it_or_without(tmp_path, options):
    ok(*options, "--epochs", 2, "--log", "tensorboard", "--out", tmp_path / "with")
    ok(*options, "--epochs", 2, "--out", tmp_path / "without")
    one, other = (load_file(tmp_path / run / "model.safetensors") for run in ("with", "without"))
    assert all(torch.equal(one[key], other[key]) for key in one) and not (tmp_path / "without" / "tensorboard").exists()


def test_without_the_package_the_extra_is_named(tmp_path, options, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    message = fails(2, *options, "--log", "tensorboard", "--out", tmp_path / "run")
    assert 'pip install "aecli[tensorboard]"' in message and not (tmp_path / "run").exists()
    assert "--log wandb" in fails(2, *options, "--log", "wandb")
