"""Reconstructions, samples and grids against the report's own modules."""

import numpy as np
import pytest
import torch

from aecli.configs import GridConfig, SampleConfig
from aecli.inference.comparison_grid import draw_comparison
from aecli.sampling.latent_prior import sample_noise
from aecli.sampling.sample import sample
from tests.support.by_hand import LATENT, assert_same_pixels, by_hand, reference, shrunk
from tests.support.trained import VAL, ok, png, pngs, write_images


@pytest.mark.parametrize("model", ["ae", "vae"])
def test_reconstructions_of_the_runs_validation_images_are_those_by_hand(trained, model):
    result = ok("reconstruct", "--model", model)
    assert result.stdout == f"wrote 3 reconstructions to reconstructions/{model}\n"
    out = trained / "reconstructions" / model
    assert pngs(out) == VAL
    expected = by_hand(reference(model), [shrunk(name) for name in VAL])
    for name, pixels in zip(VAL, expected, strict=True):
        assert_same_pixels(png(out / f"{name}.png"), pixels)


def test_native_keeps_odd_sizes_and_pads_with_edge_values(trained):
    write_images(trained / "odd", ["a", "c"], 37, 53)
    write_images(trained / "odd", ["b"], 64, 32)
    ok("reconstruct", "--model", "ae", "--data", "odd", "--native", "--out", "out")
    model = reference("ae")
    for name, (height, width) in {"a": (37, 53), "b": (64, 32), "c": (37, 53)}.items():
        pixels = png(trained / f"odd/{name}.png")
        rows = np.minimum(np.arange(64), height - 1)  # the last row and column repeated, below and to the right
        columns = np.minimum(np.arange(64 if width == 53 else 32), width - 1)
        expected = by_hand(model, [pixels[rows][:, columns]])[0, :height, :width]
        assert_same_pixels(png(trained / f"out/{name}.png"), expected)


def test_samples_are_decoded_noise(trained):
    sample(SampleConfig("vae", prior="normal", n=2, seed=3, temperature=0.7, out=trained / "out"))
    noise = torch.stack([0.7 * sample_noise((LATENT, 1, 1), 3, index) for index in range(16)])
    with torch.no_grad():
        decoded = reference("vae").decoder(noise).permute(0, 2, 3, 1).numpy()
    expected = np.rint((decoded + 1) * 127.5).astype(np.uint8)
    for index in range(2):
        assert_same_pixels(png(trained / f"out/{index:06d}.png"), expected[index])


def test_a_grid_shows_the_images_above_their_reconstructions(trained):
    result = draw_comparison(GridConfig(n=2, seed=4, out=trained / "g.png"))
    assert result.rows == ["Ground Truth", "AE", "VAE"]
    assert len(set(result.images)) == 2 and {f"{name}.png" for name in VAL} >= set(result.images)
    picture = png(trained / "g.png")
    originals = [shrunk(name.removesuffix(".png")) for name in result.images]
    rows = [np.stack(originals), *(by_hand(reference(name), originals) for name in ("ae", "vae"))]
    # 32 pixels are drawn as 128; tiles begin where the white paper between them ends.
    tops, lefts = (edges(picture.min(axis=2), axis) for axis in (1, 0))
    for row, top in zip(rows, tops, strict=True):
        for image, left in zip(row, lefts[-2:], strict=True):
            assert_same_pixels(picture[top : top + 128 : 4, left : left + 128 : 4], image)


def edges(darkest, axis):
    """Where stretches of exactly 128 inked rows (axis 1) or columns (axis 0) begin."""
    inked = np.concatenate([[False], (darkest < 255).mean(axis=axis) > 0.2, [False]])
    changes = np.flatnonzero(inked[1:] != inked[:-1])
    return [int(begin) for begin, end in zip(changes[::2], changes[1::2], strict=True) if end - begin == 128]
