"""The command line called in this process, and what tiny runs are made of and compared by."""

import csv
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from aecli.cli.app import app
from aecli.models import registry
from aecli.models.base import Trainable
from aecli.runs.checkpoints import read_document, save

SIZE, EPOCHS = 32, 2
TINY = ["--width", "4", "--image-size", str(SIZE), "--epochs", str(EPOCHS), "--batch-size", "3", "--seed", "1"]
TRAIN = ["--data", "images", "--val-fraction", "0.3", *TINY]
NAMES = [f"i{number}" if number % 3 else f"sub/i{number}" for number in range(12)]
# The rule of the split by hand: sha256 of the name with its suffix, its first 8 bytes over 2^64, below 0.3.
VAL = ["i10", "i7", "sub/i6"]

NARROW = {"block_out_channels": (8, 16, 16), "norm_num_groups": 4}  # of kl and vq

# Each command with what it cannot do without, in the folder of the fixture `trained`.
JOBS = {
    "train": ["train", "vae", *TRAIN, "--epochs", "1", "--cache", "off", "--out", "new"],
    "reconstruct": ["reconstruct", "--model", "vae"],
    "encode": ["encode", "--model", "vae", "--labels", "none"],
    "decode": ["decode", "--model", "vae", "--latents", "runs/latents.safetensors"],
    "sample": ["sample", "--model", "vae", "--n", "2"],
    "interpolate": ["interpolate", "images/i1.png", "images/i2.png", "--model", "vae"],
    "traverse": ["traverse", "--model", "vae", "--n", "2"],
    "grid": ["grid"],
    "eval": ["eval", "--gt", "images", "--pred", "images", "--metrics", "psnr"],
    "compare": ["compare", "a.json", "b.json"],
    "score": ["score", "--model", "vae", "--data", "images"],
    "models": ["models"],
    "export": ["export", "--model", "runs/kl.safetensors", "--data", "images", "--out", "new", "--format", "diffusers"],
}


def invoke(*args: str | Path) -> Result:
    """Run `aecli` with `args`; what is no exit status is raised."""
    result = CliRunner().invoke(app, [str(arg) for arg in args], prog_name="aecli")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def ok(*args: str | Path) -> Result:
    """Run `aecli`, which must succeed."""
    result = invoke(*args)
    assert result.exit_code == 0, result.stderr
    return result


def ok_json(*args: str | Path) -> Any:
    """Run `aecli … --json`, whose stdout must be one strict JSON document."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(ok(*args, "--json").stdout, parse_constant=refuse)


def fails(status: int, *args: str | Path) -> str:
    """Run `aecli`, which must fail in one or two lines on stderr; returns them without the notices before them."""
    result = invoke(*args)
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line.startswith("Note: ")]
    assert lines and lines[0].startswith("Error: "), result.stderr
    assert len(lines) <= 2, result.stderr
    return "\n".join(lines)


def write_images(folder: Path, names: Sequence[str] = NAMES, height: int = 40, width: int = 48) -> Path:
    """Write a smooth coloured PNG under each name, all different."""
    for seed, name in enumerate(names):
        rows, columns = np.mgrid[0:height, 0:width]
        smooth = np.stack([rows / height, columns / width, (rows + columns) / (height + width)], axis=-1)
        pixels = 200 * smooth + 55 * np.random.default_rng(seed).random((height, width, 3))
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


def write_model(path: Path, name: str, image_size: int = SIZE, **options: Any) -> Trainable:
    """Write a model with random weights as aecli's own file, which is in no run; return it in `eval()` mode."""
    torch.manual_seed(0)
    model = registry.build(name, registry.resolve_options(name, options)).eval()
    document = {"model": name, "options": dataclasses.asdict(model.options), "image_size": image_size, "fit": "squash"}
    save(path, model.state_dict(), document)
    return model


def png(path: Path) -> np.ndarray:
    """The pixels uint8 (H, W, 3) of a PNG file, which must be RGB."""
    with Image.open(path) as opened:
        assert opened.format == "PNG" and opened.mode == "RGB"
        return np.array(opened)


def pngs(folder: Path) -> list[str]:
    """Names of all files under `folder`, each of which must be a PNG, without their suffix."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert all(file.endswith(".png") for file in files), files
    return [file.removesuffix(".png") for file in files]


TIMES = ("images_per_s", "seconds")  # the columns of metrics.csv that differ from run to run


def rows(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv without its times."""
    with open(folder / "metrics.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]


def assert_same_run(one: Path, other: Path) -> None:
    """Both run folders must hold the same rows and, bit for bit, the same tensors."""
    assert rows(one) == rows(other)
    for name in ("model.safetensors", "last.safetensors"):
        first, second = load_file(one / name), load_file(other / name)
        assert first.keys() == second.keys()
        for key in first:
            assert torch.equal(first[key], second[key]), f"{name}: {key}"
    assert read_document(one / "model.safetensors") == read_document(other / "model.safetensors")


def rewrite(path: Path, change: Callable[[Any], Any], tensors: dict[str, torch.Tensor] | None = None) -> None:
    """Write a checkpoint again, its document changed in place or to what `change` returns, maybe with other tensors."""
    with safe_open(path, framework="pt") as file:
        document = json.loads(file.metadata()["aecli"])
    held = load_file(path)
    changed = change(document)
    document = document if changed is None else changed
    save_file(held if tensors is None else tensors, path, {"format": "pt", "aecli": json.dumps(document)})
