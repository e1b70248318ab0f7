"""The document of last.safetensors, which anyone may have written: checked field by field when read.

The format is open, so that runs outlive versions of aecli: unknown keys are ignored, and an absent key takes its
field's default. Fields without a default have been written by every version.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from aecli.errors import CheckpointError
from aecli.runs import checkpoints
from aecli.runs.folder import COLUMNS
from aecli.storage.schema import InvalidFieldsError, Schema, checked, is_object, is_text, list_of, parsed
from aecli.storage.strict_json import is_count, is_number, short_repr

Row = dict[str, float | None]  # of metrics.csv

_METRICS = ("train_", "val_")  # what the columns of metrics begin with
_REQUIRED_COLUMNS = {"epoch", "step", "lr", "train_loss", "train_recon", "images_per_s", "seconds"}
_MAX_SECONDS = 1e12
_MAX_METRIC = 1e39  # beyond float32, in which losses are computed, and short of where a plot's axis overflows
_TENSOR_GROUPS = ("model", "average", "optimizer", "sums")  # what a tensor's name begins with


def _is_metric(value: Any) -> bool:
    return value is None or (is_number(value) and abs(value) < _MAX_METRIC)


def _read_loss(value: Any) -> float:
    """Read a lowest loss, which JSON has as null before there is one."""
    if not _is_metric(value):
        raise ValueError
    return math.inf if value is None else float(value)


def _write_loss(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _read_row(row: Any, is_whole: bool = True) -> Row:
    """Read a row: metrics of any name are kept, absent columns are null unless all versions wrote them.

    Not `is_whole`: the metrics alone.
    """
    if not isinstance(row, Mapping):
        raise ValueError
    names = [name for name in COLUMNS if is_whole or name.startswith(_METRICS)]
    found = {name: row.get(name) for name in (*names, *(key for key in row if key.startswith(_METRICS)))}
    if not all(map(_is_metric, found.values())):
        raise ValueError
    if any(found[name] is None for name in _REQUIRED_COLUMNS.intersection(names)):
        raise ValueError
    return found


def _read_rows(rows: Any) -> list[Row]:
    if not isinstance(rows, list):
        raise ValueError
    return [_read_row(row) for row in rows]


@dataclass
class Counters(Schema):
    """Progress of a run: all that the order of the data, randomness and schedules depend on."""

    epoch: int = checked(is_count, 0)  # finished epochs
    step: int = checked(is_count, 0)  # finished steps, of all epochs
    batch: int = checked(is_count, 0)  # finished batches of the current epoch
    seconds: float = checked(lambda value: is_number(value) and 0 <= value < _MAX_SECONDS, 0.0)  # of the epoch

    @classmethod
    def from_document(cls, document: Any) -> Self:
        """Read them; raises ValueError."""
        counters = super().from_document(document)
        if counters.step < counters.epoch + counters.batch:
            raise InvalidFieldsError(["step"])
        return counters


@dataclass(frozen=True)
class Best(Schema):
    """The best epoch so far: of the lowest validation loss, or train loss where there are no validation images."""

    loss: float = parsed(_read_loss, math.inf)
    epoch: int = checked(is_count, 0)
    metrics: Row = checked(is_object, factory=dict)

    @classmethod
    def from_document(cls, document: Any) -> Self:
        """Read it; raises ValueError."""
        best = super().from_document(document)
        if best.epoch == 0:
            if best != cls():
                raise InvalidFieldsError(["loss", "metrics"])
            return best
        if math.isinf(best.loss):
            raise InvalidFieldsError(["loss"])
        return cls(best.loss, best.epoch, _read_row(best.metrics, is_whole=False))


@dataclass(frozen=True)
class StateDocument(Schema):
    """All of a training state that is not a tensor."""

    counters: Counters = parsed(Counters.from_document, key="clock")
    best: Best = parsed(Best.from_document)
    rows: list[Row] = parsed(_read_rows)
    lr: float = checked(lambda value: is_number(value) and value >= 0)
    scaler: dict[str, Any] = checked(is_object, factory=dict)
    stopped_early: bool = checked(lambda value: isinstance(value, bool), False)
    names: list[str] = checked(list_of(is_text), factory=lambda: ["recon", "kl"], key="losses")
    stream_positions: list[Any] | None = checked(
        lambda value: value is None or isinstance(value, list), None, key="cursors"
    )

    @classmethod
    def from_document(cls, document: Any) -> Self:
        """Read it.

        Raises:
            ValueError: fields are absent, of a wrong type or out of range, or contradict one another.
        """
        state = super().from_document(document)
        epochs = state.counters.epoch
        agree = {
            "epoch": type(document.get("epoch")) is int and document["epoch"] == epochs,
            "best": (1 <= state.best.epoch <= epochs) if epochs else state.best.epoch == 0,
            "rows": [row["epoch"] for row in state.rows] == list(range(1, len(state.rows) + 1))
            and len(state.rows) == epochs,
        }
        if wrong := [key for key, is_right in agree.items() if not is_right]:
            raise InvalidFieldsError(wrong)
        return state

    def to_document(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "epoch": self.counters.epoch,
            "clock": dict(vars(self.counters)),
            "lr": self.lr,
            "scaler": self.scaler,
            "best": {**vars(self.best), "loss": _write_loss(self.best.loss)},
            "stopped_early": self.stopped_early,
            "losses": self.names,
            "cursors": self.stream_positions,
            "rows": self.rows,
        }


def load_state(path: Path) -> tuple[dict[str, Tensor], StateDocument]:
    """Return the tensors and the document of a last.safetensors.

    Raises:
        CheckpointError: the file is damaged, or something else.
    """
    tensors, document = checkpoints.load(path)
    try:
        return tensors, StateDocument.from_document(document)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}\nhint: --restart begins the run again") from error


def validate_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check names, shapes, dtypes and values; tensors of groups that this version doesn't know are ignored.

    Raises:
        ValueError: they differ from those `expected`, or are not finite.
    """
    groups = {*_TENSOR_GROUPS, *(name.split(".", 1)[0] for name in expected)}
    known = {name for name in tensors if name.split(".", 1)[0] in groups}
    if wrong := sorted(known ^ expected.keys()):
        name = short_repr(wrong[0])
        raise ValueError(f"{name} is missing" if wrong[0] in expected else f"{name} is not a tensor of this model")
    for name, like in expected.items():
        value = tensors[name]
        if (value.shape, value.dtype) != (like.shape, like.dtype):
            raise ValueError(f"{name} is {value.dtype} {tuple(value.shape)}, not {like.dtype} {tuple(like.shape)}")
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name} has values that are not finite")
        if ".exp_avg_sq." in name and bool((value < 0).any()):
            raise ValueError(f"{name} has negative values")


def validate_scaler(scaler: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Check fp16's loss scaling; `current` is that of this run, empty in other precisions.

    Raises:
        ValueError: it differs from `current` in more than its scale and growth, or these are out of range.
    """
    constants = current.keys() - {"scale", "_growth_tracker"}
    if ("scale" in scaler) != bool(current) or any(scaler.get(key) != current[key] for key in constants):
        raise ValueError("its loss scaling is of another precision")
    if current:
        scale = scaler.get("scale")
        if not (is_number(scale) and scale > 0 and is_count(scaler.get("_growth_tracker"))):
            raise ValueError("its loss scaling is out of range")
