"""What a run folder holds, and how a MODEL argument finds one."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aecli.configs import FITS, LARGEST_SIDE
from aecli.errors import CheckpointError, message_of
from aecli.models import registry
from aecli.storage import atomic_files
from aecli.storage.strict_json import NewerSchemaError, is_count, is_number, read_json, require_known_schema

COLUMNS = ("epoch", "step", "lr", "train_loss", "train_recon", "train_kl", "val_loss", "val_psnr", "val_ssim",
           "images_per_s", "seconds")  # fmt: skip
Row = Mapping[str, float | None]


@dataclass(frozen=True)
class RunFolder:
    """A folder with the files of one run."""

    path: Path

    @property
    def model(self) -> Path:
        """Best weights by validation loss."""
        return self.path / "model.safetensors"

    @property
    def last(self) -> Path:
        """Everything needed to continue."""
        return self.path / "last.safetensors"

    @property
    def config(self) -> Path:
        """Every resolved option, versions, device, data fingerprint, split."""
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        """A row an epoch."""
        return self.path / "metrics.csv"

    @property
    def curves(self) -> Path:
        """The rows, drawn."""
        return self.path / "curves.png"

    @property
    def prior(self) -> Path:
        """Priors fitted to the latents of the best weights, once they were asked for."""
        return self.path / "prior.safetensors"

    @property
    def lock(self) -> Path:
        """Held by the process that trains here."""
        return self.path / f"{atomic_files.OWN_PREFIX}run.lock"

    @property
    def previews(self) -> Path:
        """The folder of previews."""
        return self.path / "previews"

    @property
    def tensorboard(self) -> Path:
        """The folder of event files, of a run with `--log tensorboard`."""
        return self.path / "tensorboard"

    def preview(self, epoch: int) -> Path:
        """Validation images and their reconstructions after that epoch."""
        return self.previews / f"epoch-{epoch:04d}.png"

    def exists(self) -> bool:
        """Whether a run began here."""
        return self.config.is_file()

    def is_ours(self) -> bool:
        """Whether config.json is one that aecli wrote: many programs call a file that."""
        try:
            self.read_config()
        except CheckpointError:
            return False
        return True

    def read_config(self) -> dict[str, Any]:
        """Return config.json; raises CheckpointError where it is not there or not one of ours."""
        try:
            config = require_known_schema(read_json(self.config))
            _require_parts(config)
        except OSError as error:
            raise CheckpointError(f"{self.path} is no run folder: {self.config.name} can't be read") from error
        except NewerSchemaError as error:
            raise CheckpointError(f"{self.config} {error}") from error
        except (ValueError, KeyError, TypeError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else message_of(error)
            raise CheckpointError(
                f"{self.config} is damaged ({reason}); it should be the JSON that aecli train wrote; "
                "delete it, or name another folder"
            ) from error
        return config

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.json; raises OutputError."""
        atomic_files.write_bytes(self.config, (json.dumps(config, indent=2, allow_nan=False) + "\n").encode())

    def write_metrics(self, rows: Iterable[Row]) -> None:
        """Write metrics.csv, an empty cell for what a row doesn't have; raises OutputError."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        atomic_files.write_bytes(self.metrics, text.getvalue().encode())

    def clear(self) -> None:
        """Remove the files that a run writes but for config.json, which tells that the folder is aecli's to write."""
        previews = sorted(self.previews.glob("epoch-*.png"))
        events = sorted(self.tensorboard.glob("events.out.tfevents.*"))
        for file in (self.last, self.model, self.prior, self.metrics, self.curves, *previews, *events):
            file.unlink(missing_ok=True)

    def touched(self) -> float:
        """When it was last trained, in seconds since 1970."""
        newest = self.last if self.last.exists() else self.config
        return newest.stat().st_mtime


def _require_parts(config: Mapping[str, Any]) -> None:
    """Raise ValueError, KeyError or TypeError unless a config.json has all that is ever read of it, of its type."""
    model, options, placement = config["model"], config["options"], config["placement"]
    name, fraction, size = model["name"], options["val_fraction"], options["image_size"]
    sources = [config["data"], *([config["val_data"]] if config["val_data"] is not None else [])]
    parts = {
        "model": isinstance(name, str) and name.isprintable() and isinstance(model["options"], dict),
        "data": isinstance(options["data"], str),
        "val_data": options["val_data"] is None or isinstance(options["val_data"], str),
        "val_fraction": is_number(fraction) and 0 <= fraction < 1,
        "image_size": is_count(size) and 0 < size <= LARGEST_SIDE,
        "fit": options["fit"] in FITS,
        "epochs": is_count(options["epochs"]),
        "options": isinstance(options["options"], dict),
        "sources": all(isinstance(each["fingerprint"], str) and _is_amount(each) for each in sources),
        "placement": isinstance(placement["device"], str) and isinstance(placement["compile"], bool),
        "began": isinstance(config["began"], str),
    }
    if wrong := [part for part, makes_sense in parts.items() if not makes_sense]:
        raise ValueError(f"what it says of {', '.join(wrong)} makes no sense")


def _is_amount(source: Mapping[str, Any]) -> bool:
    """A number of images, or of a stream its shards."""
    return is_count(source["images"]) or (source["images"] is None and is_count(source["shards"]))


def list_runs(runs: Path) -> list[RunFolder]:
    """Return the run folders directly under `runs`, the most recently trained last; other folders are passed over."""
    if not runs.is_dir():
        return []
    found = [RunFolder(path) for path in sorted(runs.iterdir()) if RunFolder(path).is_ours()]
    return sorted(found, key=RunFolder.touched)


def newest_run(name: str, runs: Path) -> RunFolder | None:
    """Return the most recently trained run of that model, or None."""
    of_model = [run for run in list_runs(runs) if run.read_config()["model"]["name"] == name and run.model.exists()]
    return of_model[-1] if of_model else None


@dataclass(frozen=True)
class Located:
    """A checkpoint file, the run that it belongs to if there is one, and a short name to call it by."""

    checkpoint: Path
    run: RunFolder | None
    label: str
    named: str | None  # the model as the user named it


def locate(model: str, runs: Path) -> Located:
    """Find what a MODEL argument means: a model's newest run under `runs`, a run folder, or a `.safetensors` file.

    `package.module:Class=PATH` names the class too: a file's own word is never enough to import.

    Raises:
        CheckpointError: nothing is there.
    """
    if registry.is_model_name(model):
        run = newest_run(model, runs)
        if run is None:
            raise CheckpointError(f"no run of {model!r} under {runs}; train one with: aecli train {model}")
        return Located(run.model, run, registry.run_name(model), model)
    left, _, right = model.partition("=")
    named, path = (left, Path(right)) if ":" in left and right and registry.is_model_name(left) else (None, Path(model))
    if path.is_dir():
        run = RunFolder(path)
        run.read_config()
        if not run.model.exists():
            raise CheckpointError(f"{path} has no {run.model.name} yet: its first epoch isn't finished")
        return Located(run.model, run, _label(path.resolve().name), named)
    if path.is_file():
        beside = RunFolder(path.parent)
        return Located(path, beside if path == beside.model and beside.is_ours() else None, _label(path.stem), named)
    raise CheckpointError(
        f"--model {model}: neither a model ({registry.suggestion(model)}), nor a run folder, nor a .safetensors file"
    )


def _label(name: str) -> str:
    """The name of a file or folder, made fit for one of output: `..` would lead elsewhere."""
    return name.strip(".") or "model"
