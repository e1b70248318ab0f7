"""Runs of models with codebooks: resumed, accumulated and shared, they are one run; unused codes are told."""

import pytest
import torch
from safetensors.torch import load_file

from aecli.training.events import Finished, Interrupted
from tests.support.ranks import run_ranks
from tests.support.trained import assert_same_run, ok_json, rows, write_images
from tests.training.test_loop import run

BOTTLENECKS = {
    "fsq": {"bottleneck": "fsq", "levels": (5, 4)},
    "vq": {"bottleneck": "vq", "codebook_size": 16, "codebooks": 2},
}
SMALL = {"width": 4, "depth": 1, "latent_dim": 4, "downsampling": 8}


@pytest.fixture(params=sorted(BOTTLENECKS))
def bottleneck(request):
    return {**SMALL, **BOTTLENECKS[request.param]}


def assert_close(one, other):
    first, second = load_file(one / "last.safetensors"), load_file(other / "last.safetensors")
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=1e-3, atol=1e-5, msg=key)
    for ours, theirs in zip(rows(one), rows(other), strict=True):
        for name in ("codebook_usage", "perplexity", "loss"):
            assert float(theirs[f"train_{name}"]) == pytest.approx(float(ours[f"train_{name}"]), rel=1e-4)


@pytest.mark.usefixtures("no_pictures")
def test_a_run_stopped_in_mid_epoch_is_the_run_never_stopped(config, tmp_path, bottleneck):
    config = config.replace(model="resnet", options=bottleneck, epochs=2, ema=0.9)
    run(config.replace(out=tmp_path / "whole"))
    parts = config.replace(out=tmp_path / "parts")
    _, end = run(parts, 3)
    assert isinstance(end, Interrupted) and end.batch
    assert isinstance(run(parts)[1], Finished)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    row = rows(tmp_path / "whole")[-1]
    assert 0 < float(row["train_codebook_usage"]) <= 1 < float(row["train_perplexity"])


@pytest.mark.parametrize(
    "bottleneck",
    [pytest.param("vq", marks=pytest.mark.slow), pytest.param("fsq", marks=pytest.mark.soak)],
    indirect=True,
)
def test_neither_processes_nor_micro_batches_change_the_run(tmp_path, bottleneck):
    write_images(tmp_path / "images", [f"i{number}" for number in range(11)])
    options = [word for key, value in bottleneck.items() for word in
               ("-o", f"{key}={','.join(map(str, value)) if isinstance(value, tuple) else value}")]  # fmt: skip
    command = ["train", "resnet", *options, "--data", "images", "--image-size", "32", "--batch-size", "5",
               "--epochs", "1", "--recipe", "report", "--val-fraction", "0.1", "--lr", "1e-3", "--precision", "fp32",
               "--compile", "off", "--quiet"]  # fmt: skip
    for size, grad_accum in ((1, 1), (1, 2), (2, 1)):
        out = f"{size}-{grad_accum}"
        statuses, _, said = run_ranks(tmp_path, [*command, "--out", out, "--grad-accum", str(grad_accum)], size)
        assert statuses == [0] * size, said
    assert_close(tmp_path / "1-1", tmp_path / "1-2")
    assert_close(tmp_path / "1-1", tmp_path / "2-1")


@pytest.mark.usefixtures("no_pictures")
def test_a_codebook_too_large_for_the_images_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images")
    found = {}
    for levels in ("3,3", "16,16,16,16"):
        document = ok_json(
            "train", "resnet", "-o", "bottleneck=fsq", "-o", f"levels={levels}", "--latent-dim", "4", "--width", "4",
            "--data", "images", "--image-size", "32", "--epochs", "1", "--recipe", "report", "--compile", "off",
            "--cache", "off", "--out", levels,
        )  # fmt: skip
        found[levels] = [each for each in document["findings"] if each["kind"] == "codebook"]
    assert not found["3,3"]
    (finding,) = found["16,16,16,16"]
    assert finding["figures"]["codebook_usage"] < 0.5
