"""Pages and scripts under examples/ agree with the program."""

import ast
import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tests.support.trained import ok, write_images

EXAMPLES = Path(__file__).parent.parent / "examples"


def script(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_definitions_is_what_the_script_prints():
    module = script("which_number")
    page = (EXAMPLES / "WHICH_NUMBER.md").read_text(encoding="utf-8")
    printed = re.findall(r"^\| ?(\w*) ?\| (.*?) \| ([\d.]+) \|$", page, re.MULTILINE)
    measured = module.table()
    assert [(metric, how) for metric, how, _ in printed] == [row[:2] for row in measured] and len(measured) == 11
    for (_, how, quoted), (_, _, number) in zip(printed, measured, strict=True):
        assert float(quoted) == pytest.approx(float(number), abs=0.011 if float(quoted) > 2 else 0.0011), how


@pytest.mark.parametrize(("model", "total", "rows"), [("ae", 39_076_163, 32), ("vae", 57_952_579, 33)])
def test_the_reports_architecture(model, total, rows):
    layers = script("architecture").layers(model)
    assert sum(row[3] for row in layers) == total and len(layers) == rows
    assert layers[0] == ("encoder.0", "Conv2d k4 s2 p1", "64×128×128", 3 * 64 * 16 + 64)
    shapes = {path: shape for path, _, shape, _ in layers}
    assert shapes["encoder.12"] == "1024×8×8" and layers[-1][2] == "3×256×256"
    if model == "vae":
        assert shapes["encoder.15"] == "2048×8×8"


def test_the_table_and_sheet_of_priors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "photos", [f"p{number}" for number in range(14)])
    write_images(tmp_path / "real", [f"r{number}" for number in range(8)])
    ok("train", "vae", "--data", "photos", "--val-data", "real", "--width", "4", "--image-size", "32", "--epochs", "1",
       "--batch-size", "4", "--quiet")  # fmt: skip
    table = script("priors").show("runs/vae", "real", "photos", tmp_path / "out", 8)
    rows = [line.split(" | ")[0].strip("| ") for line in table.splitlines()]
    assert rows == ["prior", "---|---|---|---|---|---|---", "normal", "gaussian", "mixture", "reconstructions"]
    assert len(list((tmp_path / "out/gaussian").iterdir())) == 8
    with Image.open(tmp_path / "out/priors.png") as sheet:
        assert sheet.width > 8 * 128


def imports_in(text):
    """Every module and name that Python code imports: ("aecli.api", "load")."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.sh")), ids=lambda path: path.name)
def test_shell_scripts_parse_and_what_they_import_exists(path):
    subprocess.run(["bash", "-n", path], check=True)
    text = path.read_text(encoding="utf-8")
    for code in re.findall(r"<<'PYTHON'\n(.*?)^PYTHON$", text, re.DOTALL | re.MULTILINE):
        for module, name in imports_in(code):
            found = importlib.import_module(module)
            assert name is None or hasattr(found, name), f"{module}.{name}"
    for script_name in re.findall(r"\$here/(\w+\.py)", text):
        assert (EXAMPLES / script_name).is_file()
