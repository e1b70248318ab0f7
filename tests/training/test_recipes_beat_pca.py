"""A recipe for `resnet` ends no worse than the PCA of the same share of numbers."""

import pytest
import torch
from PIL import Image

from aecli.recipes.layering import layer
from aecli.training.events import Finished
from aecli.training.inputs import preparation
from aecli.training.loop import train
from tests.support.photographs import photographs

STEPS = 24
pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sixteen pieces of a photograph, of which some validate."""
    place = tmp_path_factory.mktemp("photographs")
    for number, piece in enumerate(photographs(16, 128)):
        pixels = piece.add(1).mul(127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(place / f"{number}.png")
    return place


@pytest.fixture(scope="module")
def floor(folder, tmp_path_factory):
    """What the PCA reaches."""
    return best("pca", "pca", folder, tmp_path_factory.mktemp("floor") / "pca")


def best(model, recipe, folder, out, **options):
    place = {"data": str(folder), "val_fraction": 0.3, "image_size": 64, "device": "cpu", "precision": "fp32"}
    config = layer(model, {"recipe": recipe, "out": out, **place, **options})
    *_, last = train(config)
    assert isinstance(last, Finished)
    return last.best


@pytest.mark.parametrize(
    ("recipe", "metric", "sign"),
    [("quick", "val_psnr", 1), ("resnet", "val_psnr", 1), ("sharp", "val_lpips", -1), ("gan", "val_lpips", -1)],
)
def test_no_worse_than_pca(folder, floor, tmp_path, recipe, metric, sign, monkeypatch):
    monkeypatch.setattr(preparation, "_PIXELS", 2**21)  # the PCA that it begins with
    small = {"steps": STEPS, "batch_size": 4}
    trained = best("resnet", recipe, folder, tmp_path / "resnet", **small, options={"width": 16})
    assert sign * trained[metric] >= sign * floor[metric], (trained, floor)
    if recipe == "quick":  # which is what the decoder of another goes on from
        tuned = best("resnet", "finetune", folder, tmp_path / "tuned", **small, init=str(tmp_path / "resnet"))
        assert tuned["val_lpips"] <= min(trained["val_lpips"], floor["val_lpips"]), (tuned, trained, floor)
