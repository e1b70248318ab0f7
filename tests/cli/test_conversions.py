"""Every command that reads images says what was done to them."""

import json

import numpy as np
import pytest
from PIL import Image

from aecli.configs import EvalConfig, GridConfig
from tests.support.trained import TRAIN, invoke, ok


@pytest.fixture
def transparent(workplace):
    """A folder with a run, whose images have become transparent in a corner."""
    ok("train", "vae", *TRAIN, "--epochs", "1", "--quiet")
    for path in (workplace / "images").rglob("*.png"):
        pixels = np.array(Image.open(path).convert("RGBA"))
        pixels[:4, :4, 3] = 0
        Image.fromarray(pixels).save(path)
    return workplace


@pytest.mark.parametrize(
    "command",
    [["grid", "--n", "3", "--model", "vae", "--json"],
     ["interpolate", "images/i1.png", "images/i2.png", "--model", "vae", "--steps", "2"],
     ["sample", "--model", "vae", "--prior", "gaussian", "--n", "2"]],
    ids=lambda command: command[0],
)  # fmt: skip
def test_transparency_is_told(transparent, command):
    result = invoke(*command)
    assert result.exit_code == 0, result.stderr
    assert "transparency laid over white" in result.stderr
    if "--json" in command:
        (found,) = json.loads(result.stdout)["conversions"].values()
        assert found["background"]["images"] == 3


def test_the_home_folder_is_expanded_behind_a_name_too(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = EvalConfig(gt="~/gt", pred=("~/a", "b=~/b", "c=d"))
    assert config.gt == f"{tmp_path}/gt" and config.pred == (f"{tmp_path}/a", f"b={tmp_path}/b", "c=d")
    assert GridConfig(models=("~/run",)).models == (f"{tmp_path}/run",)
