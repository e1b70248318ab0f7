"""`reconstruct --latents`: what is in the file, read by the safetensors package."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

import aecli
from aecli.data.decoding.decode import fit
from tests.support.images import picture, save_image, truncate
from tests.support.ranks import run_ranks
from tests.support.trained import invoke, ok

SIZE, COUNT = 32, 23


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("latents")
    for seed in range(COUNT):
        save_image(place / "images" / ("sub" if seed % 4 == 0 else "") / f"{seed:02}.png", picture(40, 48, seed))
    for model in ("vae", "ae"):
        ok("train", model, "--data", place / "images", "--epochs", 1, "--image-size", SIZE, "--width", 4,
           "--device", "cpu", "--cache", "off", "--out", place / model)  # fmt: skip
    return place


def reconstruct(place, out, *options, model="vae", data="images"):
    return ["reconstruct", "--model", str(place / model), "--data", str(place / data), "--out", str(place / out),
            "--overwrite", "--latents", str(place / f"{out}.safetensors"), *options]  # fmt: skip


def document(file):
    with safe_open(file, "np") as opened:
        return json.loads(opened.metadata()["aecli"])


def test_the_posterior_of_each_image_by_name(place):
    printed = ok(*reconstruct(place, "whole")).stdout
    assert "latents" in printed
    file = place / "whole.safetensors"
    found, header = load_file(file), document(file)
    expected = sorted(path.relative_to(place / "images").as_posix() for path in (place / "images").rglob("*.png"))
    assert sorted(header["names"]) == expected and (header["model"], header["image_size"]) == ("vae", SIZE)
    assert set(found) == {"mean", "log_variance"} and found["mean"].shape == (COUNT, 64, 1, 1)
    module = aecli.load(place / "vae").module
    for row, name in enumerate(header["names"]):
        pixels = fit(np.array(Image.open(place / "images" / name)), SIZE, "squash")
        with torch.no_grad():
            posterior = module.posterior(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1)
        assert np.allclose(found["mean"][row], posterior.mean[0], atol=1e-5)
        assert np.allclose(found["log_variance"][row], posterior.log_variance[0], atol=1e-5)
    assert not np.allclose(found["mean"][0], found["mean"][1], atol=1e-3)


def test_an_ae_has_no_variance(place):
    ok(*reconstruct(place, "plain", model="ae"))
    assert set(load_file(place / "plain.safetensors")) == {"mean"}


def test_what_can_not_be_read_has_no_row(place):
    images = place / "torn"
    for seed in range(5):
        save_image(images / f"{seed:02}.png", picture(40, 48, seed))
    ok(*reconstruct(place, "all", data="torn"))
    whole = load_file(place / "all.safetensors")
    truncate(images / "02.png")
    result = invoke(*reconstruct(place, "rest", data="torn"))
    assert result.exit_code == 1 and "02.png" in result.stderr
    rest = load_file(place / "rest.safetensors")
    assert document(place / "rest.safetensors")["names"] == ["00.png", "01.png", "03.png", "04.png"]
    assert np.allclose(rest["mean"], whole["mean"][[0, 1, 3, 4]], atol=1e-6)


def test_processes_write_the_file_of_one(place):
    files = []
    for size in (1, 2):
        statuses, _, said = run_ranks(place, reconstruct(place, "ranks"), size)
        assert statuses == [0] * size, said
        files.append((place / "ranks.safetensors").read_bytes())
    assert files[0] == files[1] and not list(place.glob(".aecli*"))


def test_invalid_options_are_refused_and_a_replaced_file_gives_a_notice(place):
    assert "--native" in invoke(*reconstruct(place, "native", "--native")).stderr
    wrong = reconstruct(place, "wrong")
    assert ".safetensors file" in invoke(*wrong[:-1], "latents.pt").stderr
    ok(*reconstruct(place, "twice"))
    assert "replacing" in ok(*reconstruct(place, "twice")).stderr


def test_a_name_that_is_not_unicode_is_escaped(place):
    folder = place / "odd"
    save_image(folder / "a.png", picture(40, 48, 1))
    (folder / "a.png").rename(folder / "b\udcff.png")
    ok(*reconstruct(place, "odd_out", data="odd"))
    assert document(place / "odd_out.safetensors")["names"] == ["b\\udcff.png"]
