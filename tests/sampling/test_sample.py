"""`aecli sample`: noise, folders and sheets."""

import numpy as np
import torch

from aecli.configs import SampleConfig
from aecli.sampling.prior_choice import sample_noise
from aecli.sampling.sample import sample
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
    sheet = png(trained / "sheet.png")
    found = []
    for index in range(5):
        tile = png(trained / f"folder/{index:06d}.png").repeat(4, 0).repeat(4, 1)  # 32 pixels are drawn as 128
        windows = np.lib.stride_tricks.sliding_window_view(sheet[..., 0], (128, 128))[::1, ::1]
        corners = np.argwhere((windows[:, :, 0, 0] == tile[0, 0, 0]) & (windows[:, :, -1, -1] == tile[-1, -1, 0]))
        places = [(y, x) for y, x in corners.tolist() if np.array_equal(sheet[y : y + 128, x : x + 128], tile)]
        assert len(places) == 1
        found += places
    assert found == sorted(found) and len({y for y, _ in found}) == 2
