"""The documentation matches the program: commands and Python code run, help and options are the program's."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from aecli.cli.app import app
from tests.support.images import encoded, picture, save_image
from tests.support.ranks import run_ranks
from tests.support.shards import write_parquet, write_tar

ROOT = Path(__file__).parent.parent
GENERATED = ROOT / "examples" / "COMMANDS.md"  # compared with the program by test_examples.py
PAGES = [ROOT / "README.md", *sorted(set((ROOT / "examples").glob("*.md")) - {GENERATED})]
OTHER_PAGES = [ROOT / "CHANGELOG.md", ROOT / "aecli" / "ARCHITECTURE.md", ROOT / "tests" / "RELIABILITY.md",
               *sorted((ROOT / "tests" / "benchmarks").glob("*.md"))]  # fmt: skip
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES + OTHER_PAGES}
LINES = [
    (page, line)
    for page, text in TEXTS.items()
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    for line in block.splitlines()
]
RUN_HERE = ("aecli ", "torchrun --nproc-per-node 2 -m aecli ", "torchrun --nproc-per-node 2 -m -- aecli ")
RUN_PAGES = sorted({page for page, line in LINES if line.startswith(RUN_HERE)})
HELP = [(page, line) for page, text in TEXTS.items() for line in re.findall(r"<!-- help: (.*) -->", text)]
OTHER_PROGRAMS_OPTIONS = {
    "torchrun": {"--nproc-per-node", "--max-restarts", "--nnodes"},
    "pre-commit": {"--hook-type"},
    "ruff": {"--check"},
    "tests.benchmarks": {"--small", "--json"},
}
SMALL = {
    "ae": "--width 4 --image-size 32",
    "kl": "--image-size 32",
    "vq": "--image-size 32",
    "vae": "--width 4 --image-size 32",
    "pca": "--image-size 32",
    "resnet": "--width 4 --image-size 32",
    "examples": "--image-size 16",
    "prior": "--width 32 -o depth=1",
}


@pytest.mark.parametrize(("page", "line"), [each for each in LINES if not each[1].startswith(RUN_HERE)])
def test_other_commands_are_run_elsewhere(page, line):
    """By .ci/run, where it is there (a source distribution has none), or by a test of examples."""
    ci = ROOT / ".ci" / "run"
    runs = ci.read_text(encoding="utf-8") if ci.exists() else None
    first, second = shlex.split(line)[:2] if " " in line else (line, "")
    if first == "python" and second.startswith("examples/"):
        name = Path(second).stem
        assert f'script("{name}")' in (ROOT / "tests" / "test_examples.py").read_text(encoding="utf-8")
    elif line.startswith("python -m tests."):
        assert (ROOT / f"{line.split()[2].replace('.', '/')}.py").is_file(), line  # see test_benchmarks.py
    elif line.startswith("pytest -m soak"):
        assert set(re.findall(r"tests/\S+\.py", line)) <= {p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.py")}
    elif line == "pytest -m slow":  # in one call with the quick ones
        assert runs is None or "-m 'not soak'" in runs
    elif first == "bash":
        assert runs is None or second in runs, line
    elif page == "README.md":
        assert line.startswith(("pip install . && aecli train", 'pip install ".[test]" && pytest')), line
    else:
        assert line == 'pip install -e ".[dev]"' or runs is None or f"{first} {second}".strip() in runs, line


class TinyCifar:
    """Replaces torchvision's data set, which would be downloaded."""

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
    """A working folder with the images that the pages assume."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "truth", "theirs"):
        for seed in range(12):
            save_image(tmp_path / name / f"album/{seed}.png", picture(48, 64, seed + (name == "theirs")))
    for name in ("photos", "theirs"):
        shutil.make_archive(name, "zip", tmp_path / name)
    contents = [encoded(picture(48, 64, seed)) for seed in range(12)]
    for first in (0, 6):
        write_tar(tmp_path / f"shards/{first}.tar", {f"{seed}.png": contents[seed] for seed in range(first, first + 6)})
    write_parquet(tmp_path / "images.parquet", contents)
    shutil.copytree(tmp_path / "photos", tmp_path / "caltech101" / "train")
    shutil.copytree(tmp_path / "truth", tmp_path / "caltech101" / "val")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.setattr("torchvision.datasets.CIFAR10", TinyCifar)
    return tmp_path


def add_weights_of_others(folder, monkeypatch):
    """The folders of diffusers that a page assumes, some of them in place of the Hub."""
    from tests.support.diffusers_models import save

    models = {"sd-vae-ft-mse": "SD", "vq-f8": "VQ-f8", "hub/stabilityai/sd-vae-ft-mse": "SD",
              "hub/madebyollin/taesd": "TAESD"}  # fmt: skip
    for place, model in models.items():
        save(model, folder / place)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, allow_patterns: folder / "hub" / name)


@pytest.mark.parametrize(
    "page", [page if page == "README.md" else pytest.param(page, marks=pytest.mark.slow) for page in RUN_PAGES]
)
def test_the_commands_of_a_page_run_in_order(page, desk, monkeypatch):
    if page == "examples/OTHER_MODELS.md":
        add_weights_of_others(desk, monkeypatch)
    for line in (line for where, line in LINES if where == page and line.startswith(RUN_HERE)):
        words = shlex.split(line)
        words = words[words.index("aecli") + 1 :]
        if words[0] == "train":
            words += shlex.split(SMALL[words[1].split(".")[0]])
            words += shlex.split("--epoch-steps 1 --steps 2" if "--steps" in words else "--epochs 1")
            if words[1] == "kl" and "--init" not in words:  # which says how wide the model is
                words += shlex.split("-o block_out_channels=8,16 -o norm_num_groups=4")
            if any(word.endswith((".tar", ".parquet")) for word in words):
                words += shlex.split("--shuffle-buffer 12")  # else these few images are read a thousand times
            words += shlex.split("--batch-size 6 --device cpu")
        if words[0] == "sample" and "256" in words:
            words += ["--n", "24"]
        if line.startswith("torchrun "):
            statuses, _, errors = run_ranks(desk, words, 2)
            assert statuses == [0, 0], f"{line}\n{errors}"
        else:
            result = CliRunner().invoke(app, words, catch_exceptions=False)
            assert result.exit_code == 0, f"{line}\n{result.output}"


@pytest.mark.slow
def test_the_python_runs(desk):
    code = re.search(r"```python\n(.*?)```", TEXTS["README.md"], re.DOTALL)[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "'identical': 12" in done.stdout


@pytest.mark.skipif(
    tuple(map(int, typer.__version__.split(".")[:2])) < (0, 29), reason="the pages show the layout of Typer 0.29"
)
@pytest.mark.parametrize(("page", "line"), HELP)
def test_the_help_shown_is_the_programs(page, line):
    shown = re.search(rf"<!-- help: {re.escape(line)} -->\n```text\n(.*?)```", TEXTS[page], re.DOTALL)[1]
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", *shlex.split(line)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert strip(printed) == strip(shown)


def strip(text):
    return [line.rstrip() for line in text.strip().splitlines()]


def test_the_help_of_the_program_is_shown():
    assert "aecli --help" in {line for _, line in HELP}


@pytest.mark.parametrize("page", [page for page in TEXTS if page != "CHANGELOG.md"])
def test_every_option_mentioned_exists(page):
    """In prose, tables and code; a renamed option is found here."""
    commands = typer.main.get_command(app).commands.values()
    shown = [each for command in commands for each in command.params if not getattr(each, "hidden", False)]
    ours = {flag for each in shown for flag in each.opts}
    known = ours.union(*OTHER_PROGRAMS_OPTIONS.values(), {"--help", "--version", "--install-completion"})
    known.add("--show-completion")
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", TEXTS[page])) - known == set()


def test_the_campaigns_listed_are_there():
    listed = set(re.findall(r"tests/[\w/]+\.py", TEXTS["tests/RELIABILITY.md"]))
    campaigns = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests" / "soak").glob("test_*.py")}
    assert campaigns and campaigns <= listed and all((ROOT / file).is_file() for file in listed)


@pytest.mark.parametrize("page", TEXTS)
def test_pictures_and_links_lead_somewhere(page):
    for target in re.findall(r"\]\(((?!http)[^)]+)\)", TEXTS[page]):
        assert ((ROOT / page).parent / target).is_file(), target
