"""Pictures reconstructed tile by tile."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from aecli.configs import ReconstructConfig
from aecli.errors import ConfigError
from aecli.inference.loaded_model import LoadedModel
from aecli.inference.reconstruct import reconstruct
from aecli.inference.tiles import cut
from aecli.models.receptive_field import ReceptiveField
from aecli.progress import Notice
from aecli.runs.folder import Located
from aecli.runtime.device import place
from tests.support.photographs import photographs
from tests.support.plain_models import build
from tests.support.trained import fails, ok, png, pngs, write_images

MODELS = {
    "resnet": {"width": 4, "depth": 1}, "pca": {}, "ae": {"width": 2},
    "kl": {"block_out_channels": (8, 8, 8), "norm_num_groups": 2},
}  # fmt: skip


def loaded(name: str) -> LoadedModel:
    """A model of random weights, whose reconstructions have the contrast of photographs."""
    model, images = build(name, **MODELS[name]), photographs(4, 128)
    model.prepare([images])
    with torch.no_grad():
        for parameter in model.parameters() if name == "resnet" else ():
            parameter.add_(0.03 * torch.randn_like(parameter))  # training begins with zeros
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = 1
        model.train()(images)
    located = Located(Path("model.safetensors"), None, name, name)
    return LoadedModel(model.eval(), located, place("cpu", "fp32"), 128, "squash", name)


def difference(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.fixture
def picture() -> np.ndarray:
    """Uint8 (1, 3, 141, 331) of a photograph, with noise."""
    whole = (127.5 * (photographs(1, 512).numpy() + 1))[:, :, 100:241, 60:391]
    return (whole + np.random.default_rng(0).integers(-20, 21, whole.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", MODELS)
def test_tiles_make_the_whole_picture(name, picture, capsys):
    model = loaded(name)
    whole = model.reconstruct(picture)
    found = difference(model.with_tile("96").reconstruct(picture), whole)
    with capsys.disabled():
        print(f" {name}: tiles differ from the whole by {found} of 255 at most", end=" ")
    assert model.receptive_field.is_whole == (name == "kl")
    assert found <= 1 or name == "kl"
    if name in ("resnet", "ae"):
        bare = replace(model, tile="96")
        bare.__dict__["receptive_field"] = ReceptiveField(0, False)
        assert difference(bare.reconstruct(picture), whole) > 1, "seams, without a margin"


@pytest.mark.parametrize("height, width, side, margin", [(64, 96, 32, 16), (8, 264, 64, 8), (40, 40, 64, 8)])
def test_every_pixel_is_written_once_with_its_margin_around_it(height, width, side, margin):
    places = np.arange(height * width).reshape(height, width)
    made, times = np.zeros_like(places), np.zeros_like(places)
    for tile in cut((height, width), side, margin, 8):
        made[tile.written] = places[tile.read][tile.kept]
        times[tile.written] += 1
        for length, read, written in zip((height, width), tile.read, tile.written, strict=True):
            assert written.stop - written.start <= side
            assert read.start == max(0, written.start - margin)
            assert read.stop == min(length, written.stop + margin)
            assert read.start % 8 == written.start % 8 == 0
    assert (times == 1).all()
    assert np.array_equal(made, places)


def test_auto_cuts_above_two_megapixels_and_never_a_latent_of_one_shape(monkeypatch):
    model = loaded("pca").with_tile("auto")
    assert model.tile_side(1024, 2048) is None
    assert model.tile_side(1025, 2048) == 1024
    monkeypatch.setattr(type(model.model), "latent_shape", lambda self, image_size: (16,))
    assert model.tile_side(3000, 4000) is None
    with pytest.raises(ConfigError, match="one shape"):
        model.with_tile("64")


def test_on_the_command_line(trained):
    write_images(trained / "photos", ["a", "b"], 75, 201)
    native = ["reconstruct", "--model", "ae", "--data", "photos", "--native"]
    for tile in ("off", "64", "2048"):
        ok(*native, "--tile", tile, "--out", tile)
    for name in pngs(trained / "off"):
        assert difference(png(trained / f"64/{name}.png"), png(trained / f"off/{name}.png")) <= 1
        assert np.array_equal(png(trained / f"2048/{name}.png"), png(trained / f"off/{name}.png"))
    assert "multiple of 32" in fails(2, *native, "--tile", "100", "--out", "new")
    assert "--tile" in fails(2, *native, "--tile", "0", "--out", "new")
    assert "--native" in fails(2, "reconstruct", "--model", "ae", "--tile", "64", "--out", "new")
    assert not (trained / "new").exists()


def test_a_norm_over_the_whole_picture_is_said_once_where_one_is_cut(trained):
    options = ["-o", "block_out_channels=8,8", "--image-size", "32", "--steps", "1"]
    ok("train", "kl", "--data", "images", *options, "--out", "mine", "--quiet")
    write_images(trained / "photos", ["a", "b", "c"])
    for tile, times in (("16", 1), ("off", 0), ("auto", 0)):
        heard: list[object] = []
        config = ReconstructConfig("mine", data="photos", native=True, tile=tile, batch_size=1, out=trained / tile)
        assert reconstruct(config, heard.append).written == 3
        assert sum("tone" in each.text for each in heard if isinstance(each, Notice)) == times
