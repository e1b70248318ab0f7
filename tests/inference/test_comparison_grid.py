"""Grids: which images and rows, in which order."""

import shutil

from aecli.configs import GridConfig
from aecli.inference import comparison_grid
from aecli.inference.comparison_grid import draw_comparison
from tests.support.trained import ok


def test_a_grid_is_the_same_again_and_another_with_another_seed(trained):
    arguments = ["grid", "--data", "images", "--n", "4"]
    first = ok(*arguments, "--out", "a.png")
    ok(*arguments, "--out", "b.png")
    ok(*arguments, "--out", "c.png", "--seed", "1")
    assert first.stdout == "drew 4 images in rows Ground Truth, AE, VAE: a.png\n"
    assert (trained / "a.png").read_bytes() == (trained / "b.png").read_bytes() != (trained / "c.png").read_bytes()


def test_rows_are_in_the_given_order_with_distinct_labels(trained):
    shutil.copy("runs/vae/model.safetensors", "bare.safetensors")
    models = ("vae", "bare.safetensors", "runs/ae")
    result = draw_comparison(GridConfig(n=1, models=models, out=trained / "g.png"))
    assert result.rows == ["Ground Truth", "VAE vae", "VAE bare", "AE"]


def test_rows_show_what_models_keep(trained, monkeypatch):
    drawn = []
    draw = comparison_grid.draw_rows
    monkeypatch.setattr(comparison_grid, "draw_rows", lambda rows: drawn.extend(rows) or draw(rows))
    draw_comparison(GridConfig(n=1, models=("vae",), out=trained / "g.png"))
    assert [label for label, _ in drawn] == ["Ground Truth", "VAE keeps 1/48"]
