"""`train --dry-run`: figures with known answers, those of the run that follows, and nothing written."""

import json

import pytest
import torch

from aecli.configs import TrainConfig
from aecli.progress import ignore
from aecli.training import dry_run
from aecli.training.dry_run import estimate
from tests.support.trained import fails, ok, ok_json, rows, write_images


@pytest.fixture
def place(tmp_path, monkeypatch):
    write_images(tmp_path / "images", list("abcdefghijk"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


SMALL = ["train", "vae", "--data", "images", "--image-size", "32", "--width", "2", "--batch-size", "4",
         "--device", "cpu"]  # fmt: skip


def everything(place):
    return sorted(path.relative_to(place).as_posix() for path in place.rglob("*"))


def test_nothing_is_written(place):
    before = everything(place)
    ok(*SMALL, "--epochs", 3, "--dry-run")
    assert everything(place) == before


@pytest.mark.slow
def test_the_reports_vae(place):
    config = TrainConfig("vae", data="images", val_fraction=0, batch_size=1, device="cpu", precision="fp32")
    found = estimate(config, ignore)
    assert found.parameters == 57_952_579 and found.latent_shape == (1024, 8, 8)
    assert round(found.forward_gflop, 1) == 26.4 and round(found.step_gflop, 1) == pytest.approx(79.0, abs=0.3)
    assert found.memory.weights == found.memory.gradients == 4 * found.parameters == found.memory.optimizer / 2
    assert found.options["lr"] == 1e-4 and found.options["options"]["beta"] == 2.5e-5


def test_steps_folder_and_state_are_those_of_the_run(place):
    command = [*SMALL, "--epochs", 2, "--cache", "off"]
    found = ok_json(*command, "--dry-run")
    assert (found["run"], found["state"], found["steps_done"]) == ("runs/vae", "new", 0)
    ok(*command, "--quiet")
    assert found["steps"] == int(rows(place / "runs/vae")[-1]["step"])
    assert found["options"] == json.loads((place / "runs/vae/config.json").read_text())["options"]
    assert found["train_images"] + found["val_images"] == 11
    assert ok_json(*command, "--dry-run")["state"] == "finished"
    longer = ok_json(*command[:-4], "--epochs", 5, "--cache", "off", "--dry-run")
    assert (longer["run"], longer["state"], longer["steps_done"]) == ("runs/vae", "resumes", found["steps"])
    assert ok_json(*command, "--lr", 1e-2, "--dry-run")["run"] == "runs/vae-2"
    assert ok_json(*command, "--lr", 1e-2, "--out", "runs/vae", "--dry-run")["state"] == "refused"


def test_steps_with_an_adversarial_loss_are_timed_too(place):
    command = [*SMALL, "--steps", 9, "--adversarial-weight", 0.1, "--adversarial-start", 6, "--val-fraction", 0]
    found = ok_json(*command, "--dry-run")
    before, after = found["seconds_per_step"], found["adversarial_seconds_per_step"]
    assert after > before  # a discriminator takes two more networks' passes
    assert found["seconds"] == pytest.approx(6 * before + 3 * after)
    assert ok_json(*command, "--adversarial-start", 9, "--dry-run")["adversarial_seconds_per_step"] is None


def test_a_run_that_stopped_early_is_finished(place):
    command = [*SMALL, "--epochs", 9, "--patience", 1, "--lr", 1e-9, "--cache", "off"]
    ok(*command, "--quiet")
    assert "stopped early" in ok(*command).stdout or "was finished already" in ok(*command).stdout
    assert ok_json(*command, "--dry-run")["state"] == "finished"


def test_a_batch_is_no_larger_than_the_set(place):
    """Eleven images, of which some train: 512 of them can't be taken at once."""
    large = estimate(TrainConfig("ae", data="images", image_size=32, batch_size=512, device="cpu",
                                 options={"width": 2}), ignore)  # fmt: skip
    exact = estimate(TrainConfig("ae", data="images", image_size=32, batch_size=large.train_images, device="cpu",
                                 options={"width": 2}), ignore)  # fmt: skip
    assert large.memory == exact.memory and large.step_gflop == exact.step_gflop and large.batches_per_epoch == 1


def test_batch_statistics_of_one_image_are_refused_as_training_does(place):
    command = ["train", "ae", "--data", "images", "--image-size", "32", "--width", "2", "--batch-size", "1"]
    assert fails(2, *command, "--dry-run") == fails(2, *command)


def test_activations_are_what_autograd_keeps(place):
    """Of one convolution after another, by hand: what each takes in and, of Mish and the norm, what they need again."""
    config = TrainConfig("ae", data="images", image_size=32, batch_size=4, device="cpu", precision="fp32",
                         options={"width": 2})  # fmt: skip

    found = [estimate(config.replace(batch_size=size), ignore) for size in (2, 4, 8)]
    assert [each.step_gflop / found[0].step_gflop for each in found] == [1, 2, 4]
    two, four, eight = (each.memory.activations for each in found)
    assert two > 2 * 3 * 32 * 32 * 4  # at least the images
    assert eight - four == 2 * (four - two) > 0
    rest_of_the_batch = 6 * 3 * 32 * 32 * 4
    accumulated = estimate(config.replace(batch_size=8, grad_accum=4), ignore)
    assert accumulated.memory.activations == two + rest_of_the_batch


def test_activations_of_one_product_by_hand(monkeypatch):
    """y = (x W)²: autograd keeps x, and x W."""
    model, saved = torch.nn.Module(), {}
    model.weight = torch.nn.Parameter(torch.ones(3, 5))
    x = torch.ones(7, 3, requires_grad=True)
    with dry_run.counting_saved_tensors(saved, model):
        product = x @ model.weight
        product.square().sum()
    assert sorted(saved.values()) == [4 * 7 * 3, 4 * 7 * 5]


def test_its_text(place):
    printed = ok(*SMALL, "--epochs", 3, "--ema", 0.9, "--dry-run").stdout
    assert all(len(line) <= 80 for line in printed.splitlines() if str(place) not in line), printed
    for words in (
        "runs/vae would be begun",
        "parameters, latent 32×1×1",
        "keeps 1/96 of",
        "EMA",
        "batch-size        4",
        "beta",
    ):
        assert words in printed


def test_what_training_would_refuse_is_refused(place):
    assert "nowhere" in fails(1, "train", "vae", "--data", "nowhere", "--dry-run")
    assert "--image-size" in fails(2, "train", "vae", "--data", "images", "--image-size", "33", "--dry-run")
