"""Several processes train one model: the same run as one process, files by one of them, and failures reported once."""

import os
import signal
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from aecli.data.batches import epoch_order
from aecli.runs.checkpoints import read_document
from aecli.training.state import seed_step
from tests.reference import report
from tests.support.data import finish
from tests.support.plain_models import build
from tests.support.processes import end, wait_for
from tests.support.ranks import begin_ranks, fail_ranks, run_ranks
from tests.support.trained import assert_same_run, rows, write_images

PLAIN = "tests.support.plain_models:PlainVAE"
OPTIONS = ["--data", "images", "--image-size", "64", "--precision", "fp32", "--lr", "1e-3", "--compile", "off",
           "--quiet"]  # fmt: skip


@pytest.fixture
def place(tmp_path):
    write_images(tmp_path / "images")  # 12, of which 10 are trained on
    return tmp_path


def train(place, size, out, *options, model=PLAIN, attempt=0):
    arguments = ["train", model, *OPTIONS, "--out", out, *options]
    statuses, stdout, stderr = run_ranks(place, arguments, size, attempt)
    assert statuses == [0] * size, stderr
    assert len([line for line in stdout.splitlines() if "finished" in line]) == 1
    return place / out


def assert_close_runs(one, other):
    """The same curves and weights, but for fp32's rounding."""
    for ours, theirs in zip(rows(one), rows(other), strict=True):
        for column, value in ours.items():
            is_of_pixels = column in ("val_psnr", "val_ssim")  # one of which may be rounded to the next of 256 values
            tolerance = 1e-3 if is_of_pixels else 1e-5
            assert float(theirs[column] or 0) == pytest.approx(float(value or 0), rel=tolerance), column
    first, second = load_file(one / "last.safetensors"), load_file(other / "last.safetensors")
    assert first.keys() == second.keys()
    for key in first:
        if "to_k.bias" in key:  # attention doesn't depend on it: its gradient is rounding alone, which Adam magnifies
            continue
        torch.testing.assert_close(first[key], second[key], rtol=1e-4, atol=1e-6, msg=key)


class TestTheSameResult:
    @pytest.mark.parametrize(
        ("size", "grad_accum", "options"),
        [
            (2, 1, ["--batch-size", "5", "--flip", "--ema", "0.9"]),  # two sizes of rank slices
            (2, 2, ["--batch-size", "5", "--flip", "--image-size", "32", "--fit", "random-crop"]),
            (2, 1, ["--batch-size", "5", "--flip", "--turns", "--resized-crops", "--image-size", "32"]),
            # The last batch is one image, for three processes.
            pytest.param(3, 1, ["--batch-size", "3"], marks=pytest.mark.slow),
            pytest.param(1, 4, ["--batch-size", "6"], marks=pytest.mark.soak),
        ],
    )
    def test_as_one_process_takes_the_same_batches(self, place, size, grad_accum, options):
        alone = train(place, 1, "alone", "--epochs", "2", *options)
        assert_close_runs(
            alone, train(place, size, "shared", "--epochs", "2", "--grad-accum", str(grad_accum), *options)
        )

    def test_of_batches_larger_than_the_noise_that_is_drawn_at_once(self, place, monkeypatch):
        small = partial(_draw_at_once, 4)
        runs = []
        for size in (1, 2):
            arguments = ["train", PLAIN, *OPTIONS, "--out", str(size), "--epochs", "1", "--batch-size", "10"]
            assert run_ranks(place, arguments, size, before=small)[0] == [0] * size
            runs.append(place / str(size))
        assert_close_runs(*runs)

    def test_of_the_built_in_model_as_by_a_reference_with_statistics_of_each_half(self, place):
        run = train(place, 2, "vae", "--width", "4", "--epochs", "1", "--batch-size", "5", model="vae")
        found, (expected, losses) = load_file(run / "last.safetensors"), self._reference(place)
        assert float(rows(run)[0]["train_loss"]) == pytest.approx(sum(losses) / 2, rel=1e-6)
        # A bias before a batch normalisation has no gradient but for rounding, which Adam blows up to its full step.
        compared = [key for key in expected if key.endswith(("0.weight", "3.weight", "running_var"))]
        assert len(compared) > 10
        for key in compared:
            torch.testing.assert_close(found[f"model.{key}"], expected[key], rtol=1e-3, atol=1e-5, msg=key)

    def _reference(self, place):
        """One epoch by hand: two forward passes a step, each with statistics of its own, the first one's kept."""
        from aecli.configs import TrainConfig
        from aecli.progress import never
        from aecli.training.inputs.image_sets import gather_images, list_sources

        data = TrainConfig("vae", data=str(place / "images"), image_size=64, cache="off")
        (images, _, _), _ = finish(gather_images(data, list_sources(data), never))
        model = report.ReportVAE(4, 64)
        model.load_state_dict(build("vae", width=4).state_dict())
        model.train()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.5, 0.999))
        order = images.rows[epoch_order(len(images), 0, 0)]
        losses = [0.0, 0.0]
        for step, batch in enumerate((order[:5], order[5:])):
            pixels = torch.from_numpy(np.array(images.images[batch])).float() / 127.5 - 1
            seed_step(0, step)
            noise = torch.randn(len(batch), 64, 2, 2)
            optimizer.zero_grad()
            buffers = {}
            for number, half in enumerate((slice(0, len(batch) // 2), slice(len(batch) // 2, None))):
                loss = report.vae_loss(model, pixels[half], noise[half])
                part = loss * len(pixels[half]) / len(batch)
                part.backward()
                losses[step] += part.item()
                if number == 0:
                    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
            optimizer.step()
        return model.state_dict(), losses


def _draw_at_once(images):
    from aecli.training.inputs import micro_batches

    micro_batches._DRAWN_AT_ONCE = images
    torch.set_num_threads(1)


class TestResuming:
    @pytest.mark.slow
    def test_with_another_number_of_processes(self, place):
        whole = train(place, 1, "whole", "--epochs", "3", "--batch-size", "4")
        for size, epochs in ((2, 1), (1, 2), (3, 3)):
            train(place, size, "mine", "--epochs", str(epochs), "--batch-size", "4")
        assert_close_runs(whole, place / "mine")

    @pytest.mark.slow
    def test_after_a_stop_asked_of_all_of_them(self, place):
        options = ["--epochs", "4000", "--batch-size", "4", "--val-fraction", "0", "--seed", "3"]
        self._stop_in_mid_run(place, options, signal.SIGTERM)
        document = read_document(place / "mine" / "last.safetensors")
        epochs = document["epoch"] + 2
        for out in ("mine", "whole"):
            train(place, 2, out, "--epochs", str(epochs), *options[2:])
        assert_same_run(place / "whole", place / "mine")

    def _stop_in_mid_run(self, place, options, number):
        processes = begin_ranks(place, ["train", PLAIN, *OPTIONS, "--out", "mine", *options], 2)
        wait_for(place / "mine" / "last.safetensors")
        for process in processes:
            os.kill(process.pid, number)
        assert [end(process) for process in processes] == [128 + number] * 2
        said = (place / "stderr.txt").read_text()
        assert said.count("Error: interrupted after epoch") == 1
        assert said.count("\n") == 2

    @pytest.mark.soak  # in CI torchrun's own restart, in test_torchrun.py
    def test_after_one_of_them_is_killed(self, place):
        options = ["--epochs", "4000", "--batch-size", "4", "--checkpoint-every", "0.0001"]
        processes = begin_ranks(place, ["train", PLAIN, *OPTIONS, "--out", "mine", *options], 2)
        wait_for(place / "mine" / "last.safetensors")
        os.kill(processes[1].pid, signal.SIGKILL)
        assert [end(process) for process in processes] == [1, -signal.SIGKILL]
        assert (place / "stderr.txt").read_text().count("Error: another of the processes") == 1
        epochs = str(read_document(place / "mine" / "last.safetensors")["epoch"] + 2)
        for out in ("mine", "whole"):  # begun again by torchrun, --restart has been seen to already
            again = ["--restart"] if out == "mine" else []
            train(place, 2, out, "--epochs", epochs, *options[2:], *again, attempt=1)
        assert_same_run(place / "whole", place / "mine")


class TestFailures:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--data", "nowhere"], "nowhere"),
            (["--batch-size", "1"], "--batch-size 1: fewer images than the 2 processes"),
            (["--sync-batchnorm", "on"], "--sync-batchnorm on: not available on cpu"),
            (["--epochs", "0"], "--epochs 0"),
            (["--lr", "1e30"], "is not a finite number"),
        ],
    )
    def test_that_all_meet_are_reported_once(self, place, options, said):
        arguments = ["train", PLAIN, *OPTIONS, "--out", "mine", "--epochs", "9", "--batch-size", "4", *options]
        assert said in fail_ranks(place, arguments, 2)

    def test_of_one_process_end_all_with_its_message(self, place):
        command = ["train", PLAIN, *OPTIONS, "--out", "mine", "--epochs", "9"]
        statuses, _, said = run_ranks(place, command, 2, before=_spoil_the_second)
        assert statuses == [1, 2]
        assert said.startswith("Error: AECLI_CACHE_GB=much") and said.count("Error: ") == 1

    def test_machines_that_see_different_images(self, place):
        write_images(place / "elsewhere" / "images", ["i1", "i2", "i3"])
        command = ["train", PLAIN, *OPTIONS, "--out", str(place / "mine"), "--epochs", "9"]
        statuses, _, said = run_ranks(place, command, 2, before=_move_the_second)
        assert statuses == [1, 1] and said.count("Error: ") == 1 and "not the same on all machines" in said


def _spoil_the_second():
    if os.environ["RANK"] == "1":
        os.environ["AECLI_CACHE_GB"] = "much"


def _move_the_second():
    if os.environ["RANK"] == "1":
        os.chdir("elsewhere")


def test_an_adversarial_step_of_two_processes_is_that_of_one(place):
    options = ["--epochs", "1", "--batch-size", "4", "--adversarial-weight", "0.1", "--adversarial-start", "1",
               "--adversarial-ramp", "0", "--perceptual-weight", "0.1", "--perceptual-net", "alex",
               "--clip-norm", "1"]  # fmt: skip
    one, other = (train(place, size, name, *options) for size, name in ((1, "alone"), (2, "shared")))
    for ours, theirs in zip(rows(one), rows(other), strict=True):
        for part in ("recon", "kl", "perceptual", "adversarial", "discriminator"):
            assert float(theirs[f"train_{part}"]) == pytest.approx(float(ours[f"train_{part}"]), rel=1e-5)
    first, second = (load_file(folder / "last.safetensors") for folder in (one, other))
    assert first.keys() == second.keys() and any(key.startswith("critic.") for key in first)
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=1e-2, atol=2e-5, msg=key)
