"""`--fit random-crop`: trained on pieces, validated and used on whole pictures."""

import shutil
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

import aecli
from aecli.configs import EvalConfig, GridConfig, InterpolateConfig, ReconstructConfig, TrainConfig
from aecli.errors import ConfigError
from aecli.evaluation.paired import evaluate
from aecli.inference.comparison_grid import draw_comparison
from aecli.inference.reconstruct import reconstruct
from aecli.models.base import Autoencoder, Encoded
from aecli.progress import Notice
from aecli.recipes.layering import layer
from aecli.runs.checkpoints import read_document
from aecli.sampling.walks import draw_walk
from aecli.training.dry_run import estimate
from aecli.training.inputs.latent_sets import resolve_model
from tests.support.images import encoded, picture, read_rgb
from tests.support.trained import rows
from tests.training.test_loop import run


@pytest.fixture
def config(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for seed in range(10):  # no two of one size: reconstruct computes images of one size together
        (folder / f"{seed}.png").write_bytes(encoded(picture(28 + 3 * seed, 60 - seed, seed)))
    return TrainConfig("ae", data=str(folder), val_fraction=0.5, epochs=2, image_size=32, fit="random-crop",
                       batch_size=3, lr=1e-3, options={"width": 4}, device="cpu", precision="fp32", compile="off",
                       out=tmp_path / "mine", runs=tmp_path / "runs")  # fmt: skip


def test_validation_is_that_of_the_whole_pictures(config, tmp_path):
    reports, _ = run(config)
    notices = [report.text for report in reports if isinstance(report, Notice)]
    assert any("2 of 10 images" in text and "--image-size 32" in text for text in notices)
    mine = tmp_path / "mine"
    assert read_document(mine / "model.safetensors")["fit"] == "random-crop"
    best = min(rows(mine), key=lambda row: float(row["val_loss"]))
    result = reconstruct(ReconstructConfig(str(mine), out=tmp_path / "out"))
    assert result.fit == "random-crop"
    for path in (tmp_path / "out").iterdir():
        assert read_rgb(path).shape == read_rgb(tmp_path / "photographs" / path.name).shape
    (found,) = evaluate(
        EvalConfig(str(config.data.source), (str(tmp_path / "out"),), metrics=("psnr", "ssim"), on_mismatch="skip")
    ).results
    assert float(best["val_psnr"]) == found.scores["psnr"].mean
    assert float(best["val_ssim"]) == found.scores["ssim"].mean
    assert (tmp_path / "mine" / "previews" / "epoch-0001.png").exists()
    _use(mine, config, tmp_path)


def test_no_more_whole_pictures_are_measured_than_asked(config, tmp_path):
    names = sorted(path.name for path in (tmp_path / "photographs").iterdir())[:4]
    for folder, held in (("four", names), ("ends", [names[0], names[-1]])):
        (tmp_path / folder).mkdir()
        for name in held:
            shutil.copy(tmp_path / "photographs" / name, tmp_path / folder)
    columns = ("val_loss", "val_psnr", "val_ssim")
    measured = []
    for folder in ("four", "ends"):
        out = tmp_path / f"of-{folder}"
        run(config.replace(val_data=str(tmp_path / folder), val_images=2, batch_size=5, out=out))
        measured.append([[row[name] for name in columns] for row in rows(out)])
    assert measured[0] == measured[1]


def _use(mine, config, tmp_path):
    """Other uses of that run: whole pictures where they may differ in size, the middle where they may not."""
    model = aecli.load(mine)
    path = sorted((tmp_path / "out").iterdir())[0]
    (whole,) = model.reconstruct([Image.open(tmp_path / "photographs" / path.name)])
    np.testing.assert_array_equal(np.asarray(whole), read_rgb(path))
    assert model.encode(picture(40, 50)).shape == (1, 64, 1, 1)
    with pytest.warns(UserWarning, match="was trained with"):
        squashed, middle = aecli.load(mine, image_size=64, fit="squash"), aecli.load(mine, image_size=64)
    assert squashed.reconstruct([Image.open(path)])[0].size == (64, 64)
    assert middle.reconstruct(picture(40, 50)).shape == (1, 64, 64, 3)
    told = []
    latents = ReconstructConfig(str(mine), out=tmp_path / "middle", latents=tmp_path / "latents.safetensors")
    assert reconstruct(latents, told.append).fit == "crop"
    assert any("--fit crop --image-size 32" in each.text for each in told if isinstance(each, Notice))
    draw_comparison(GridConfig(models=(str(mine),), n=3, out=tmp_path / "grid.png"))
    photographs = sorted((tmp_path / "photographs").iterdir())
    draw_walk(InterpolateConfig(*photographs[:2], model=str(mine), out=tmp_path / "walk.png", steps=3))
    assert (tmp_path / "grid.png").exists() and (tmp_path / "walk.png").exists()
    prior = TrainConfig("prior", config.data.source, autoencoder=str(mine), image_size=32, fit="crop", device="cpu")
    assert resolve_model(prior, None)[2].loaded.fit == "crop"
    with pytest.raises(ConfigError, match="one size"):
        resolve_model(prior.replace(fit="random-crop"), None)
    assert layer("prior", {"autoencoder": str(mine)}).data.fit == "crop"
    assert estimate(config.replace(out=tmp_path / "new"), lambda _: None).options["fit"] == "random-crop"


@dataclass(frozen=True)
class NoOptions:
    """None."""


class OneVector(Autoencoder):
    """A latent of one shape for all images."""

    Options: ClassVar = NoOptions

    def __init__(self, options):
        super().__init__()
        self.options, self.layer = options, torch.nn.Linear(1, 1)

    def encode(self, images, noise=None):
        return Encoded(images.flatten(1)[:, :8])

    def decode(self, latents):
        return latents

    def latent_shape(self, image_size):
        return (8,)


def test_a_model_for_images_of_one_size_is_refused(config):
    with pytest.raises(ConfigError, match="OneVector.*whole pictures"):
        run(config.replace(model=f"{__name__}:OneVector", options={}))
