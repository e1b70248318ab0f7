"""Between two images and along principal directions: where the path leads, what is drawn, and what is refused."""

import json
import shutil
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from aecli.configs import InterpolateConfig
from aecli.data.sources.registry import list_images
from aecli.figures.animation import animation_bytes
from aecli.figures.grid import draw_rows
from aecli.inference.loaded_model import LoadedModel, load_model
from aecli.progress import ignore
from aecli.runs.checkpoints import load_model as load_weights
from aecli.sampling.fitted_prior import load_fitted
from aecli.sampling.prior_choice import choose_walk_prior
from aecli.sampling.walks import interpolate, slerp
from tests.support.flows import TRAIN_PRIOR
from tests.support.images import enlarged, find
from tests.support.trained import TRAIN, fails, ok, ok_json, png

ENDS = ["images/i1.png", "images/i2.png"]


@pytest.fixture
def decoded(monkeypatch):
    """Every batch of latents that is decoded."""
    seen = []
    decode = LoadedModel.decode
    monkeypatch.setattr(
        LoadedModel,
        "decode",
        lambda self, latents, *rest: (seen.append(latents), decode(self, latents, *rest))[1],
    )
    return seen


def test_slerp_goes_along_the_arc_at_an_even_pace():
    start, end = np.array([1, 0, 0], np.float32), np.array([0, 2, 0], np.float32)
    for share in (0.0, 0.25, 0.5, 1.0):
        angle = share * np.pi / 2
        assert slerp(start, end, share) == pytest.approx([np.cos(angle), 2 * np.sin(angle), 0], abs=1e-6)


def test_slerp_keeps_the_length_that_draws_have():
    generator = np.random.default_rng(0)
    start, end = generator.standard_normal((2, 4096)).astype(np.float32)
    middle = slerp(start, end, 0.5)
    assert np.linalg.norm(middle) == pytest.approx(64, rel=0.03)
    assert np.linalg.norm((start + end) / 2) < 50


@pytest.mark.parametrize("end", [[1, 0], [-1, 0], [0, 0]])
def test_slerp_of_vectors_without_an_arc_is_a_line(end):
    start, end = np.array([1, 0], np.float32), np.array(end, np.float32)
    assert slerp(start, end, 0.5) == pytest.approx((start + end) / 2, abs=1e-6)


def latents_of(own, *names):
    ok("reconstruct", "--model", "vae", "--data", "images", "--latents", "latents.safetensors", "--out", "r", "--quiet")
    with safe_open(own / "latents.safetensors", "np") as file:
        listed = json.loads(file.metadata()["aecli"])["names"]
        means = file.get_tensor("mean")
    return [means[listed.index(name)].reshape(-1) for name in names]


def test_along_n_0_i_it_is_the_arc_between_the_means(own, decoded):
    start, end = latents_of(own, "i1.png", "i2.png")
    decoded.clear()
    said = ok_json("interpolate", *ENDS, "--model", "vae", "--prior", "normal", "--steps", "5", "--out", "walk.png")
    assert said == {"out": "walk.png", "steps": 5, "prior": "normal"}
    walked = torch.cat(decoded).reshape(5, -1).numpy()
    by_hand = np.stack([slerp(start, end, share) for share in (0, 0.25, 0.5, 0.75, 1)])
    assert walked == pytest.approx(by_hand, abs=1e-5)


def test_along_a_fitted_prior_it_is_an_arc_in_its_principal_space(own, decoded):
    start, end = latents_of(own, "i1.png", "i2.png")
    decoded.clear()
    ok("interpolate", *ENDS, "--model", "vae", "--steps", "3", "--out", "walk.png")
    prior, _ = load_fitted(own / "runs/vae/prior.safetensors", 64)
    both = np.stack([start, end])
    whitened = prior.whiten(both)
    middle = prior.unwhiten(slerp(*whitened, 0.5)[None])[0] + slerp(*(both - prior.unwhiten(whitened)), 0.5)
    walked = torch.cat(decoded).reshape(3, -1).numpy()
    assert walked[1] == pytest.approx(middle, abs=1e-4)
    assert np.array_equal(walked[[0, 2]], both)


@pytest.mark.parametrize("model", ["vae", "resnet"])
def test_both_ends_are_the_reconstructions_along_whichever_prior(own, model):
    if model == "resnet":
        ok("train", "resnet", *TRAIN, "--recipe", "quick", "--epochs", "1", "-o", "depth=1", "--quiet")
    ok("train", "prior", "--model", model, "--width", "32", "-o", "depth=1", "-o", "channels=4", "--epochs", "1",
       "--batch-size", "4", "--quiet")  # fmt: skip
    ok("reconstruct", "--model", model, "--data", "images", "--out", "plain", "--quiet")
    loaded = load_model(model, own / "runs")
    for kind in ("gaussian", "flow"):
        config = InterpolateConfig(*ENDS, model=model, prior=kind, runs=own / "runs")
        prior = replace(choose_walk_prior(loaded, config, ignore), flow_steps=4)
        ((_, images),) = interpolate(loaded, prior, *map(Path, ENDS), steps=4).rows
        assert prior.name == kind and len(images) == 4
        assert np.array_equal(images[0], png(own / "plain/i1.png"))
        assert np.array_equal(images[-1], png(own / "plain/i2.png"))


def test_along_a_flow_it_is_an_arc_in_its_noise(own, decoded):
    ok(*TRAIN_PRIOR)
    start, end = latents_of(own, "i1.png", "i2.png")
    decoded.clear()
    assert ok_json("interpolate", *ENDS, "--model", "vae", "--steps", "3", "--out", "walk.png")["prior"] == "flow"
    flow, _ = load_weights(own / "runs/prior/model.safetensors")
    both = torch.from_numpy(np.stack([start, end])).reshape(2, 64, 1, 1)
    with torch.no_grad():
        noise = flow.invert(flow.whiten(both), 50)
        left_out = (both - flow.unwhiten(flow.sample(noise, 50))).flatten(1).numpy()
        arc = slerp(*noise.flatten(1).numpy(), 0.5)
        middle = flow.unwhiten(flow.sample(torch.from_numpy(arc).reshape(1, 4, 1, 1), 50)).flatten().numpy()
    walked = torch.cat(decoded).reshape(3, -1).numpy()
    assert walked[1] == pytest.approx(middle + slerp(*left_out, 0.5), abs=1e-4)


def test_the_sheet_shows_both_images_as_the_model_takes_them(own):
    ok("interpolate", *ENDS, "--model", "vae", "--steps", "2", "--out", "walk.png")
    loaded = load_model("vae", own / "runs")
    images = {image.name: image for image in list_images("images")}
    first, last = (loaded.read_image(images[name]).pixels for name in ("i1.png", "i2.png"))
    for image in (first, last):
        assert find(png(own / "walk.png"), enlarged(image, 4))  # 32 pixels at 128


def test_directions_are_swept_from_minus_to_plus_three_deviations(own, decoded):
    ok("traverse", "--model", "ae", "--n", "2", "--steps", "3")
    assert (own / "traversal.png").exists()
    prior, _ = load_fitted(own / "runs/ae/prior.safetensors", 64)
    walked = torch.cat([each.reshape(-1, 64) for each in decoded])[-6:].numpy()
    for direction in range(2):
        reach = 3 * prior.std[direction] * prior.components[direction]
        by_hand = np.stack([prior.mean - reach, prior.mean, prior.mean + reach])
        assert walked[3 * direction : 3 * direction + 3] == pytest.approx(by_hand, abs=1e-4)


def test_no_more_directions_than_there_are(own):
    ok("traverse", "--model", "vae", "--n", "1000", "--steps", "2", "--quiet")


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_an_animation_goes_there_and_back(own, suffix):
    ok("traverse", "--model", "vae", "--n", "2", "--steps", "4", "--out", f"walk{suffix}")
    with Image.open(f"walk{suffix}") as opened:
        assert opened.format == suffix[1:].upper() and opened.n_frames == 6 and opened.info["loop"] == 0
        frames = []
        for index in range(6):
            opened.seek(index)
            frames.append(np.asarray(opened.convert("RGB")).astype(int))
    assert np.array_equal(frames[1], frames[5]) and np.array_equal(frames[2], frames[4])
    assert not np.array_equal(frames[0], frames[3])


def test_an_interpolation_is_animated_too(own):
    ok("interpolate", *ENDS, "--model", "vae", "--out", "walk.gif")
    with Image.open("walk.gif") as opened:  # equal frames are merged
        assert opened.format == "GIF" and opened.is_animated


def test_a_webp_is_without_loss_and_a_gif_near(own):
    generator = np.random.default_rng(0)
    frames = [Image.fromarray(generator.integers(0, 255, (8, 8, 3), dtype=np.uint8).repeat(9, 0).repeat(9, 1))
              for _ in range(2)]  # fmt: skip
    for suffix, most in ((".webp", 0), (".gif", 40)):
        with Image.open(BytesIO(animation_bytes(frames, suffix))) as opened:
            shown = np.asarray(opened.convert("RGB")).astype(int)
        assert np.abs(shown - np.asarray(frames[0])).mean() <= most


def test_headings_are_above_their_columns():
    images = [np.full((64, 64, 3), 200, np.uint8)] * 3
    plain = draw_rows([("row", images)])
    headed = draw_rows([("row", images)], heads=["one", "", "three"])
    assert headed.width == plain.width and headed.height > plain.height
    extra = headed.height - plain.height
    top = np.asarray(headed)[:extra]
    thirds = np.array_split(top[:, -3 * (128 + 3) :], 3, axis=1)
    assert [bool((third < 100).any()) for third in thirds] == [True, False, True]


@pytest.mark.parametrize(
    "command, word",
    [
        (["interpolate", *ENDS, "--prior", "autoregressive"], "--prior autoregressive"),
        (["traverse", "--prior", "flow"], "--prior flow"),
        (["interpolate", *ENDS, "--steps", "1"], "--steps 1"),
        (["traverse", "--prior", "normal"], "no principal directions"),
        (["traverse", "--out", "folder"], "--out folder"),
        (["interpolate", *ENDS, "--out", "walk.jpg"], "--out walk.jpg"),
    ],
)
def test_wrong_use(own, command, word):
    assert word in fails(2, *command, "--model", "vae")


def test_the_older_flags_of_sample_give_the_same_pictures(own):
    for new, old in (
        (["interpolate", *ENDS], ["sample", "--interpolate", *ENDS]),
        (["traverse", "--n", "1"], ["sample", "--traverse", "--n", "1"]),
    ):
        ok(*new, "--model", "vae", "--steps", "2", "--out", "new.png")
        ok(*old, "--model", "vae", "--steps", "2", "--out", "old.png")
        assert (own / "new.png").read_bytes() == (own / "old.png").read_bytes()
    assert "--interpolate" not in ok("sample", "--help").stdout


def test_images_that_are_not_there_or_are_none(own):
    assert "nowhere.png" in fails(1, "interpolate", "images/i1.png", "nowhere.png", "--model", "vae")
    (own / "none.png").write_bytes(b"no image")
    assert "none.png" in fails(1, "interpolate", "none.png", "images/i1.png", "--model", "vae")
    assert "images" in fails(1, "interpolate", "images", "images/i1.png", "--model", "vae")


def test_a_flow_that_was_not_trained_is_an_error(own):
    assert "aecli train prior" in fails(1, "interpolate", *ENDS, "--model", "vae", "--prior", "flow")


def test_an_ae_is_not_walked_along_n_0_i(own):
    assert "can't be sampled" in fails(1, "interpolate", *ENDS, "--model", "ae", "--prior", "normal")
    ok("interpolate", *ENDS, "--model", "ae")


def test_without_a_run_a_vae_is_walked_along_n_0_i_but_not_traversed(own):
    shutil.copy("runs/vae/model.safetensors", "bare.safetensors")
    assert ok_json("interpolate", *ENDS, "--model", "bare.safetensors")["prior"] == "normal"
    assert "principal directions" in fails(1, "traverse", "--model", "bare.safetensors")
