"""What the campaigns on runs share: a small training, and what must hold of its folder."""

import csv
from pathlib import Path

from aecli.runs import checkpoints
from aecli.runs.folder import COLUMNS, RunFolder
from aecli.storage.atomic_files import OWN_PREFIX, list_names
from tests.support.trained import rows

TRAIN = ["train", "vae", "--data", "images", "--val-fraction", "0.3", "--width", "4", "--image-size", "32",
         "--batch-size", "3", "--lr", "1e-3", "--device", "cpu", "--compile", "off", "--cache", "cache",
         "--quiet"]  # fmt: skip


def require_sound(folder: Path, whole: Path | None) -> int:
    """What must hold of a run at any instant: whole files, and rows that are the first of the run `whole`, if given.

    Returns the step that a continued run will begin at.
    """
    run = RunFolder(folder)
    if run.exists():
        run.read_config()
    if run.model.exists():
        tensors, document = checkpoints.load(run.model)
        assert all(tensor.isfinite().all() for tensor in tensors.values()) and document["epoch"] >= 1
    if run.metrics.exists():
        require_whole_rows(run.metrics)
        if whole is not None:
            found = rows(folder)
            assert found == rows(whole)[: len(found)]
    if not run.last.exists():
        return 0
    tensors, document = checkpoints.load(run.last)
    assert tensors
    return int(document["clock"]["step"])


def require_whole_rows(file: Path) -> None:
    """A header, then rows of all columns, one an epoch, the last one ended."""
    text = file.read_text()
    assert text.endswith("\n")
    header, *table = csv.reader(text.splitlines())
    assert tuple(header[: len(COLUMNS)]) == COLUMNS
    assert all(len(row) == len(header) for row in table)
    assert [row[0] for row in table] == [str(epoch) for epoch in range(1, len(table) + 1)]


def require_tidy(folder: Path) -> None:
    """A finished run leaves nothing half written, and no lock."""
    assert not [path for path in folder.rglob("*") if path.name.startswith(OWN_PREFIX)]
    always = [
        "config.json",
        "curves.png",
        "images.csv",
        "last.safetensors",
        "metrics.csv",
        "model.safetensors",
        "previews",
    ]
    assert sorted(set(list_names(folder)) - {"before-adversarial.safetensors"}) == always
