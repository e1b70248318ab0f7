"""Pages and scripts under examples/: what they say is what the program and the papers say."""

import importlib.util
import re
from pathlib import Path

import pytest

from tests.commands import reference

EXAMPLES = Path(__file__).parent.parent / "examples"


def script(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_reference_is_the_programs():
    page = (EXAMPLES / "COMMANDS.md").read_text(encoding="utf-8")
    assert page == reference(), "write it anew: python -m tests.commands > examples/COMMANDS.md"


def test_the_table_of_numbers_is_what_the_script_prints():
    module = script("which_number")
    page = (EXAMPLES / "WHICH_NUMBER.md").read_text(encoding="utf-8")
    said = re.findall(r"^\| ?(\w*) ?\| (.*?) \| ([\d.]+) \|$", page, re.MULTILINE)
    measured = module.table()
    assert [(metric, how) for metric, how, _ in said] == [row[:2] for row in measured] and len(measured) == 11
    for (_, how, told), (_, _, number) in zip(said, measured, strict=True):
        assert float(told) == pytest.approx(float(number), abs=0.011 if float(told) > 2 else 0.0011), how


@pytest.mark.parametrize(("model", "total", "rows"), [("ae", 39_076_163, 32), ("vae", 57_952_579, 33)])
def test_the_reports_architecture(model, total, rows):
    layers = script("architecture").layers(model)
    assert sum(row[3] for row in layers) == total and len(layers) == rows
    assert layers[0] == ("encoder.0", "Conv2d k4 s2 p1", "64×128×128", 3 * 64 * 16 + 64)
    shapes = {path: shape for path, _, shape, _ in layers}
    assert shapes["encoder.12"] == "1024×8×8" and layers[-1][2] == "3×256×256"
    if model == "vae":
        assert shapes["encoder.15"] == "2048×8×8"
