"""Run folders: their files, and the run that a MODEL argument names."""

import csv
import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aecli.errors import CheckpointError, message_of
from aecli.models import registry
from aecli.progress import Listener, ignore
from aecli.runs.diffusers_folder import PARTS, find_weights
from aecli.runs.hub import PREFIX as HUB
from aecli.runs.hub import HubModel
from aecli.runs.run_config import complete_config
from aecli.storage import atomic_files
from aecli.storage.fingerprints import fingerprint_of
from aecli.storage.strict_json import NewerSchemaError, read_json, require_known_schema

COLUMNS = ("epoch", "step", "lr", "train_loss", "train_recon", "train_kl", "val_loss", "val_psnr", "val_ssim",
           "images_per_s", "seconds")  # fmt: skip
IMAGE_COLUMNS = ("source", "name", "bytes")  # of images.csv
Row = Mapping[str, float | None]


class RunFolder:
    """A folder with the files of one run."""

    def __init__(self, path: Path) -> None:
        """Name its files; none is opened or created."""
        self.path = path
        self.model = path / "model.safetensors"  # best weights by validation loss
        self.before_adversarial = path / "before-adversarial.safetensors"  # best weights of the steps before that loss
        self.last = path / "last.safetensors"  # everything needed to resume
        self.config = path / "config.json"  # every resolved option, versions, device, data fingerprint, split
        self.images = path / "images.csv"  # names and sizes of its images
        self.metrics = path / "metrics.csv"  # one row per epoch
        self.curves = path / "curves.png"  # the plot of metrics.csv
        self.prior = path / "prior.safetensors"  # priors fitted to the latents of the best weights, once needed
        self.prior_scores = path / "prior-scores.json"  # how near their samples are to the validation images
        self.lock = path / f"{atomic_files.OWN_PREFIX}run.lock"  # held by the process that trains here
        self.previews = path / "previews"
        self.tensorboard = path / "tensorboard"  # event files, of a run with `--log tensorboard`

    def preview(self, epoch: int) -> Path:
        """Validation images and their reconstructions after that epoch."""
        return self.previews / f"epoch-{epoch:04d}.png"

    def exists(self) -> bool:
        """Whether a run began here."""
        return self.config.is_file()

    def is_ours(self) -> bool:
        """Whether config.json is aecli's: many programs write a file of that name."""
        try:
            self.read_config()
        except CheckpointError:
            return False
        return True

    def read_config(self) -> dict[str, Any]:
        """Return config.json with its defaults; raises CheckpointError where it is missing, damaged or not aecli's."""
        try:
            return complete_config(require_known_schema(read_json(self.config)))
        except OSError as error:
            raise CheckpointError(f"{self.path} is not a run folder: {self.config.name} can't be read") from error
        except NewerSchemaError as error:
            raise CheckpointError(f"{self.config} {error}") from error
        except ValueError as error:
            raise CheckpointError(
                f"{self.config} is damaged: {message_of(error)}\nhint: delete it, or name another folder"
            ) from error

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.json; raises OutputError."""
        atomic_files.write_json(self.config, config)

    def write_metrics(self, rows: Iterable[Row]) -> None:
        """Write metrics.csv: `COLUMNS`, then further keys of `rows` in the order met; absent cells are empty.

        Raises:
            OutputError: it can't be written.
        """
        rows = list(rows)
        columns = dict.fromkeys((*COLUMNS, *(key for row in rows for key in row)))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        atomic_files.write_bytes(self.metrics, text.getvalue().encode())

    def write_images(self, sources: Mapping[str, Mapping[str, str]]) -> None:
        """Write images.csv: of each source (`data`, `val_data`), the names and sizes of what it holds.

        Raises:
            OutputError: it can't be written.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(IMAGE_COLUMNS)
        writer.writerows((source, name, size) for source, held in sources.items() for name, size in held.items())
        atomic_files.write_bytes(self.images, text.getvalue().encode("utf-8", "surrogateescape"))

    def read_images(self) -> dict[str, dict[str, str]]:
        """Return names and sizes by source, without those whose names and sizes are not config.json's fingerprint.

        An older run has none; a file that someone changed is not what the run was trained on.
        """
        found: dict[str, dict[str, str]] = {}
        try:
            with open(self.images, newline="", encoding="utf-8", errors="surrogateescape") as file:
                for row in csv.reader(file):
                    if len(row) == len(IMAGE_COLUMNS):
                        source, name, size = row
                        found.setdefault(source, {})[name] = size
        except (OSError, csv.Error):
            return {}
        config = self.read_config()
        prints = {source: (config.get(source) or {}).get("fingerprint") for source in found}
        return {source: held for source, held in found.items() if fingerprint_of(held.items()) == prints[source]}

    def clear(self) -> None:
        """Remove a run's files except config.json, which marks the folder as aecli's to write."""
        previews = sorted(self.previews.glob("epoch-*.png"))
        events = sorted(self.tensorboard.glob("events.out.tfevents.*"))
        weights = (self.last, self.model, self.before_adversarial, self.prior)
        for file in (*weights, self.prior_scores, self.images, self.metrics, self.curves, *previews, *events):
            file.unlink(missing_ok=True)

    def touched(self) -> float:
        """Return when it was last trained, in seconds since 1970."""
        newest = self.last if self.last.exists() else self.config
        return newest.stat().st_mtime


def list_runs(runs: Path) -> list[RunFolder]:
    """Return the run folders directly under `runs`, the most recently trained last; other folders are skipped."""
    if not runs.is_dir():
        return []
    found = [RunFolder(path) for path in sorted(runs.iterdir()) if RunFolder(path).is_ours()]
    return sorted(found, key=RunFolder.touched)


def newest_run(name: str, runs: Path) -> RunFolder | None:
    """Return the most recently trained run of that model, or None."""
    of_model = [run for run in list_runs(runs) if run.read_config()["model"]["name"] == name and run.model.exists()]
    return of_model[-1] if of_model else None


def find_run(text: str, runs: Path) -> RunFolder | None:
    """Return the run that `text` names by its folder, by a file in it, or by its folder's name under `runs`, if any."""
    path = Path(text)
    folders = [path.parent, path.parent.parent] if path.is_file() else [path, runs / path]
    return next((run for run in map(RunFolder, folders) if run.is_ours()), None)


@dataclass(frozen=True)
class Located:
    """A checkpoint file, the run that it belongs to, if any, and a short name for labels and output folders."""

    checkpoint: Path
    run: RunFolder | None
    label: str
    named: str | None  # the model as the user named it


def locate(model: str, runs: Path, flag: str = "--model", listen: Listener = ignore) -> Located:
    """Find what a MODEL argument names: a model's newest run under `runs`, a folder, or a `.safetensors` file.

    A folder is a run's, or one of diffusers': a config beside `diffusion_pytorch_model.safetensors`, or a pipeline.
    `hf:ORG/NAME` names such a folder on the Hugging Face Hub, which is fetched, and `listen` told so.

    A run folder is also named by its name under `runs`, and by any file in it that holds no weights.
    `package.module:Class=PATH` names the class too: one that only a file names is never imported. `flag` is the option
    that errors name.

    Raises:
        CheckpointError: there is no such run, folder or file.
        ModelError: huggingface_hub is missing.
    """
    if model.startswith(HUB):
        on_hub = HubModel.parse(model, flag)
        return Located(on_hub.fetch(flag, listen), None, _label(on_hub.name), None)
    if registry.is_model_name(model):
        run = newest_run(model, runs)
        if run is None and (so_named := RunFolder(runs / model)).is_ours() and so_named.model.exists():
            return _located(so_named, None)
        if run is None:
            beside = RunFolder(Path(model))
            hint = f"{flag} ./{model}" if beside.is_ours() else f"train one with: aecli train {model}"
            raise CheckpointError(f"no run of {model!r} under {runs}\nhint: {hint}")
        return Located(run.model, run, registry.run_name(model), model)
    left, _, right = model.partition("=")
    named, path = (left, Path(right)) if ":" in left and right and registry.is_model_name(left) else (None, Path(model))
    if path.is_dir():
        run = RunFolder(path)
        if not run.is_ours() and (weights := find_weights(path)):
            return Located(weights, None, _label_of_weights(path), named)
        run.read_config()
        return _located(run, named)
    if path.suffix != ".safetensors" and (run := find_run(str(path), runs)):
        return _located(run, named)
    if path.is_file():
        beside = RunFolder(path.parent)
        return Located(path, beside if path == beside.model and beside.is_ours() else None, _label(path.stem), named)
    raise CheckpointError(
        f"{flag} {model}: not a model, a run folder, a diffusers folder or a .safetensors file\n"
        f"hint: {registry.suggestion(model)}"
    )


def _located(run: RunFolder, named: str | None) -> Located:
    if not run.model.exists():
        raise CheckpointError(f"{run.path} has no {run.model.name} yet: its first epoch is not finished")
    return Located(run.model, run, _label(run.path.resolve().name), named)


def _label_of_weights(folder: Path) -> str:
    """Return the folder's name; after the pipeline's for one that is called as its kind of part is."""
    resolved = folder.resolve()
    return _label(f"{resolved.parent.name}-{resolved.name}" if resolved.name in PARTS else resolved.name)


def _label(name: str) -> str:
    """Return the name of a file or folder as one for an output folder: `..` would lead elsewhere."""
    return name.strip(".") or "model"


def resolved(checkpoint: Path) -> str:
    """Return a file's path in its real folder: a link to a file stays, since what lies beside it may belong to it."""
    return os.path.join(os.path.realpath(checkpoint.parent), checkpoint.name)
