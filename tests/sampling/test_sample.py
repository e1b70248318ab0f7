"""`aecli sample`: noise, folders and sheets."""

import numpy as np
import torch

from aecli.configs import SampleConfig
from aecli.sampling.latent_prior import sample_noise
from aecli.sampling.sample import sample
from tests.support.images import enlarged, find
from tests.support.trained import png


def test_noise_is_standard_normal_and_independent_by_index():
    noise = torch.stack([sample_noise((64, 8, 8), 0, index) for index in range(4)]).double()
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03
    correlations = torch.corrcoef(noise.flatten(1)) - torch.eye(4)
    assert correlations.abs().max() < 0.08


def test_temperature_zero_gives_one_image(trained):
    sample(SampleConfig("vae", n=3, temperature=0, out=trained / "cold"))
    first, *others = [png(trained / f"cold/{index:06d}.png") for index in range(3)]
    assert all(np.array_equal(first, other) for other in others)


def test_a_sheet_shows_the_folders_images_in_order(trained):
    sample(SampleConfig("vae", prior="normal", n=5, out=trained / "folder"))
    sample(SampleConfig("vae", prior="normal", n=5, out=trained / "sheet.png"))
    tiles = [enlarged(png(trained / f"folder/{index:06d}.png"), 4) for index in range(5)]  # 32 pixels at 128
    found = [place for tile in tiles for place in find(png(trained / "sheet.png"), tile)]
    assert len(found) == 5 and found == sorted(found) and len({y for y, _ in found}) == 2
