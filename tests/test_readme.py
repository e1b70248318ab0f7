"""What the README says is what the program does: its commands run, its help is the program's, its Python runs."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pyarrow
import pytest
import typer
from PIL import Image
from pyarrow import parquet
from typer.testing import CliRunner

from aecli.cli.app import app
from tests.conftest import encoded, picture
from tests.support.ranks import run_ranks

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
YOUR_DATA = (ROOT / "examples" / "YOUR_DATA.md").read_text(encoding="utf-8")
SMALL = {
    "ae": "--width 4 --image-size 32",
    "vae": "--width 4 --image-size 32",
    "examples": "--image-size 16",
    "prior": "--width 32 -o depth=1",
}


def commands(text):
    """The lines of `text` that begin aecli, alone or by torchrun."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith(("aecli ", "torchrun "))]


def test_every_command_is_run_somewhere():
    """Here, or by .ci/run."""
    lines = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
    ci = (ROOT / ".ci" / "run").read_text() if (ROOT / ".ci" / "run").exists() else None
    for line in lines:
        if line.startswith("bash "):
            assert ci is None or line.split()[1] in ci, line
        elif line.startswith("python -m tests.benchmarks."):
            assert ci is None or f"small {line.split('.')[-1].split()[0]} " in ci, line
        else:
            assert line.startswith(
                (
                    "aecli ",
                    "torchrun --nproc-per-node 2 -m aecli ",
                    "pip install . && aecli train",
                    'pip install ".[test]" && pytest',
                )
            ), line


class TinyCifar:
    """Stands in for torchvision's data set, which would be downloaded."""

    def __init__(self, root, train=True, transform=None, target_transform=None, download=False):
        assert train and download

    def __len__(self):
        return 12

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError
        return Image.fromarray(picture(32, 32, index)), 0


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with what the README takes for granted."""
    for name in ("photos", "truth", "theirs"):
        for seed in range(12):
            path = tmp_path / name / "album" / f"{seed}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(picture(48, 64, seed + (name == "theirs"))))
    for name in ("photos", "theirs"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for file in sorted((tmp_path / name).rglob("*.png")):
                archive.write(file, file.relative_to(tmp_path / name))
    (tmp_path / "shards").mkdir()
    for first in (0, 6):
        with tarfile.open(tmp_path / "shards" / f"{first}.tar", "w") as archive:
            for seed in range(first, first + 6):
                archive.add(tmp_path / "photos" / "album" / f"{seed}.png", f"{seed}.png")
    files = sorted((tmp_path / "photos" / "album").iterdir())
    parquet.write_table(pyarrow.table({"image": [{"bytes": f.read_bytes(), "path": f.name} for f in files]}),
                        tmp_path / "images.parquet")  # fmt: skip
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torchvision.datasets.CIFAR10", TinyCifar)
    return tmp_path


def test_the_commands_run_in_order(desk, monkeypatch):
    monkeypatch.setattr("aecli.training.observers.previews.draw_curves", lambda rows: b"")
    for line in commands(README + YOUR_DATA):
        words = shlex.split(line)
        words = words[words.index("aecli") + 1 :]
        if words[0] == "train":
            words += shlex.split(SMALL[words[1].split(".")[0]])
            words += shlex.split("--epoch-steps 1 --steps 2" if "--steps" in words else "--epochs 1")
            words += shlex.split("--batch-size 6 --device cpu")
        if line.startswith("torchrun "):
            statuses, _, said = run_ranks(desk, words, 2)
            assert statuses == [0, 0], f"{line}\n{said}"
        else:
            result = CliRunner().invoke(app, words, catch_exceptions=False)
            assert result.exit_code == 0, f"{line}\n{result.output}"


def test_the_python_runs(desk):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "'identical': 12" in done.stdout


@pytest.mark.skipif(
    tuple(map(int, typer.__version__.split(".")[:2])) < (0, 29), reason="the help shown is as Typer 0.29 lays it out"
)
@pytest.mark.parametrize("line", re.findall(r"<!-- help: (.*) -->", README))
def test_the_help_shown_is_the_programs(line):
    shown = re.search(rf"<!-- help: {re.escape(line)} -->\n```text\n(.*?)```", README, re.DOTALL)[1]
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", *shlex.split(line)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert strip(printed) == strip(shown)


def strip(text):
    return [line.rstrip() for line in text.strip().splitlines()]


def test_the_campaigns_listed_are_there():
    listed = set(re.findall(r"tests/[\w/]+\.py", (ROOT / "tests" / "RELIABILITY.md").read_text(encoding="utf-8")))
    campaigns = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests" / "campaigns").glob("test_*.py")}
    assert campaigns <= listed and all((ROOT / file).is_file() for file in listed)


def test_pictures_and_links_lead_somewhere():
    for target in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (ROOT / target).is_file(), target
