"""Pages and scripts under examples/ agree with the program."""

import importlib.util
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tests.support.imports import require_imports
from tests.support.trained import ok, pngs, write_images

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


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.sh")), ids=lambda path: path.name)
def test_shell_scripts_parse_and_what_they_import_exists(path):
    subprocess.run(["bash", "-n", path], check=True)
    text = path.read_text(encoding="utf-8")
    for code in re.findall(r"<<'PYTHON'\n(.*?)^PYTHON$", text, re.DOTALL | re.MULTILINE):
        require_imports(code)
    for script_name in re.findall(r"\$here/(\w+\.py)", text):
        assert (EXAMPLES / script_name).is_file()


def test_the_script_for_several_gpus_trains_reconstructs_measures_and_samples(tmp_path, monkeypatch):
    """Its commands, each in one process here: what several make of them, the tests of ranks say."""
    launcher = tmp_path / "bin" / "torchrun"
    launcher.parent.mkdir()
    launcher.write_text('#!/bin/sh\nprintf "%s\\n" "$*" >>commands\n')
    launcher.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "PATH": f"{launcher.parent}{os.pathsep}{os.environ['PATH']}", "PROCESSES": "2"}
    (tmp_path / "multi_gpu").mkdir()  # for the table, which training would have made
    words = ["bash", EXAMPLES / "multi_gpu.sh", "demo", "32", "1", "--width", "4", "--batch-size", "8"]
    subprocess.run(words, check=True, env=environment)
    launches = (tmp_path / "commands").read_text().splitlines()
    for restarts, line in zip((3, 0, 0, 0), launches, strict=True):
        launched, command = line.split(" -m aecli ")
        assert launched == f"--standalone --nproc-per-node 2 --max-restarts {restarts}"
        ok(*shlex.split(command), *(["--device", "cpu"] if command.startswith("train") else []))
    assert (tmp_path / "multi_gpu/per_image.csv").is_file() and (tmp_path / "multi_gpu/samples.png").is_file()
    assert pngs(tmp_path / "multi_gpu/reconstructions")
