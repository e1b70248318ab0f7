"""`aecli decode`: pictures of latents in every layout, by whoever wrote them, and what is refused."""

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from aecli.configs import DecodeConfig, EncodeConfig, ReconstructConfig
from aecli.configs.checks import LATENT_FORMATS
from aecli.errors import AecliError, DataError, ModelError
from aecli.inference.latents.decode import decode
from aecli.inference.latents.encode import encode
from aecli.inference.reconstruct import reconstruct
from aecli.progress import Notice
from tests.support.by_hand import assert_same_pixels
from tests.support.latents import write_classes, write_model
from tests.support.ranks import run_ranks
from tests.support.trained import png, pngs


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Photos, a model, its reconstructions of them, and their latents in every layout."""
    place = tmp_path_factory.mktemp("decode")
    data = str(write_classes(place / "photos", 2))
    model = str(write_model(place / "vae.safetensors", "vae"))
    reconstruct(ReconstructConfig(model, data, out=place / "expected", latents=place / "file.safetensors"))
    for form in LATENT_FORMATS:
        encode(EncodeConfig(model, data, out=place / form, format=form, flip=form != "safetensors", shard_size=4))
    return place


def run(place, latents, out, *, model="vae", listen=lambda report: None, **options):
    config = DecodeConfig(str(place / f"{model}.safetensors"), latents, out=out, device="cpu", **options)
    return decode(config, listen)


def assert_pictures(place, out, names=None):
    expected = pngs(place / "expected")
    assert pngs(out) == sorted(names or expected)
    for name, other in zip(expected, names or expected, strict=True):
        assert_same_pixels(png(out / f"{other}.png"), png(place / f"expected/{name}.png"))


@pytest.mark.parametrize("form", [*LATENT_FORMATS, "file.safetensors"])
def test_every_layout_decodes_to_the_reconstructions(place, tmp_path, form):
    assert run(place, place / form, tmp_path / "out", batch_size=3).written == 6
    assert_pictures(place, tmp_path / "out")


@pytest.mark.slow
def test_processes_write_the_files_of_one(place, tmp_path):
    command = ["decode", "--model", str(place / "vae.safetensors"), "--latents", str(place / "npy"), "--batch-size",
               "1", "--out", "out"]  # fmt: skip
    statuses, printed, said = run_ranks(tmp_path, command, 2)
    assert (statuses, printed) == ([0, 0], "wrote 6 pictures to out\n"), said
    assert_pictures(place, tmp_path / "out")


# Of other programs: without index.json


def numbered(pattern, count=6):
    return [pattern.format(number) for number in range(count)]


def test_shards_without_names_are_numbered(place, tmp_path):
    for number in range(2):
        tensors = load_file(place / f"lightningdit/latents-{number:05d}.safetensors")
        (tmp_path / "in").mkdir(exist_ok=True)
        save_file(tensors, tmp_path / f"in/latents_rank00_shard{number:03d}.safetensors")
    run(place, tmp_path / "in", tmp_path / "out")
    assert_pictures(place, tmp_path / "out", numbered("{:08d}"))


def test_arrays_of_edm2_have_its_names(place, tmp_path):
    for number in range(6):
        (tmp_path / "in/00000").mkdir(parents=True, exist_ok=True)
        name = f"00000/img-mean-std-{number:08d}.npy"
        (tmp_path / "in" / name).write_bytes((place / "edm2" / name).read_bytes())
    run(place, tmp_path / "in", tmp_path / "out")
    assert_pictures(place, tmp_path / "out", numbered("00000/img{:08d}"))


def test_generated_arrays_are_unscaled_by_what_is_asked(place, tmp_path):
    latents = np.concatenate([load_file(path)["latents"] for path in sorted((place / "safetensors").glob("*.safet*"))])
    np.save(tmp_path / "all.npy", (latents - 0.25) * 3)
    said = []
    run(place, tmp_path / "all.npy", tmp_path / "out", scaling_factor=3, shift=0.25, listen=said.append)
    assert_pictures(place, tmp_path / "out", numbered("{:08d}"))
    assert not any(isinstance(each, Notice) for each in said)
    run(place, tmp_path / "all.npy", tmp_path / "as it is", listen=said.append)
    assert any("doesn't say how" in each.text for each in said if isinstance(each, Notice))


def test_latents_of_another_size_have_pictures_of_another_size(place, tmp_path):
    np.save(tmp_path / "wide.npy", np.zeros((2, 64, 2, 3), np.float16))
    run(place, tmp_path / "wide.npy", tmp_path / "out", scaling_factor=1)
    assert png(tmp_path / "out/00000001.png").shape == (64, 96, 3)


# What is refused


def test_other_weights_are_told_and_other_latents_refused(place, tmp_path):
    said = []
    write_model(tmp_path / "other.safetensors", "vae", seed=1)
    run(tmp_path, place / "edm2", tmp_path / "out", model="other", listen=said.append)
    assert any("other weights" in each.text for each in said if isinstance(each, Notice))
    write_model(tmp_path / "fsq.safetensors", "resnet", bottleneck="fsq", latent_dim=8, levels=[8, 5, 5, 5])
    with pytest.raises(ModelError, match="64×1×1"):
        run(tmp_path, place / "npy", tmp_path / "no", model="fsq")
    assert not (tmp_path / "no").exists()


def test_what_is_not_complete_is_refused(place, tmp_path):
    index = json.loads((place / "npy/index.json").read_text())
    (tmp_path / "in").mkdir()
    (tmp_path / "in/index.json").write_text(json.dumps({**index, "complete": False}))
    with pytest.raises(DataError, match="not complete"):
        run(place, tmp_path / "in", tmp_path / "out")


def npy(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values, allow_pickle=True)


def shard(path, names, latents=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    latents = np.zeros((len(names), 64, 1, 1), np.float32) if latents is None else latents
    save_file({"latents": latents}, path, {"aecli": json.dumps({"schema": 1, "names": names})})


HOSTILE = {
    "nothing": lambda place: place.mkdir(),
    "a pickle": lambda place: npy(place / "a.npy", np.array([{"a": 1}], object)),
    "text": lambda place: npy(place / "a.npy", np.array(["text"])),
    "no numbers": lambda place: npy(place / "a.npy", np.full((64, 1, 1), np.nan)),
    "two shapes": lambda place: [npy(place / f"{side}.npy", np.zeros((64, side, side))) for side in (1, 2)],
    "a scalar": lambda place: npy(place / "a.npy", np.float32(1)),
    "other axes": lambda place: npy(place / "a.npy", np.zeros((64, 1), np.float32)),
    "a way out": lambda place: shard(place / "a.safetensors", ["../../a.png"]),
    "an absolute path": lambda place: shard(place / "a.safetensors", ["/tmp/a.png"]),
    "no name": lambda place: shard(place / "a.safetensors", [""]),
    "a NUL": lambda place: shard(place / "a.safetensors", ["a\0.png"]),
    "half a character": lambda place: shard(place / "a.safetensors", ["\ud800.png"]),
    "one name twice": lambda place: shard(place / "a.safetensors", ["a.png", "a.jpg"]),
    "a folder of a name": lambda place: shard(place / "a.safetensors", ["a.x", "a.png/b.png"]),
    "fewer names": lambda place: shard(place / "a.safetensors", ["a.png"], np.zeros((2, 64, 1, 1), np.float32)),
    "other tensors": lambda place: (place.mkdir(), save_file({"x": np.zeros(3)}, place / "a.safetensors")),
    "no shard": lambda place: (place.mkdir(), (place / "a.safetensors").write_bytes(b"no shard")),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused_in_a_line_or_two(place, tmp_path, kind):
    HOSTILE[kind](tmp_path / "in")
    with pytest.raises(AecliError) as raised:
        run(place, tmp_path / "in", tmp_path / "out")
    assert str(raised.value).count("\n") <= 1 and "in" in str(raised.value)
    assert not list(tmp_path.rglob("*.png"))


def test_a_file_of_another_kind_is_refused(place, tmp_path):
    (tmp_path / "latents.pt").write_bytes(pickle.dumps(torch.zeros(2)))
    with pytest.raises(DataError, match=r"\.safetensors or \.npy"):
        run(place, tmp_path / "latents.pt", tmp_path / "out")
