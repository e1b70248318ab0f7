"""What last.safetensors says, looked at before any of it is believed: a stranger may have written it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from aecli.errors import CheckpointError, message_of
from aecli.runs import checkpoints
from aecli.runs.folder import COLUMNS
from aecli.storage.strict_json import is_count, is_number, short_repr

SCHEDULE = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")
FIGURES = {column for column in COLUMNS if column.startswith(("train_", "val_"))}
_ALWAYS_THERE = ("epoch", "step", "lr", "train_loss", "train_recon", "images_per_s", "seconds")  # in a row
_LONGEST = 1e12  # seconds
_LARGEST = 1e39  # of a figure: beyond float32, in which losses are computed, and short of where a plot's axis overflows


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the document of a last.safetensors, the document as training could have written it.

    Raises:
        CheckpointError: it is no such file.
    """
    tensors, document = checkpoints.load(path)
    try:
        require_sense(document)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}; --restart begins the run again") from error
    return tensors, document


def require_sense(document: Mapping[str, Any]) -> None:
    """Raise ValueError unless all parts of a state's document are there, of their types, and agree."""
    try:
        makes_sense = {
            "clock": _is_clock(document["clock"], document["epoch"]),
            "lr": is_number(document["lr"]) and document["lr"] > 0,
            "schedule": _is_schedule(document["schedule"]),
            "scaler": isinstance(document["scaler"], dict),
            "best": _is_best(document["best"], document["epoch"]),
            "stopped_early": isinstance(document["stopped_early"], bool),
            "has_kl": isinstance(document["has_kl"], bool),
            "rows": isinstance(document["rows"], list) and len(document["rows"]) == document["epoch"],
        }
        wrong = [part for part, is_right in makes_sense.items() if not is_right]
        if not wrong and not all(_is_row(row, epoch) for epoch, row in enumerate(document["rows"], 1)):
            wrong = ["rows"]
    except KeyError as error:
        raise ValueError(f"it has no {error}") from error
    except (TypeError, AttributeError) as error:
        raise ValueError(message_of(error)) from error
    if wrong:
        raise ValueError(f"what it says of {', '.join(wrong)} makes no sense")


def _is_clock(clock: Mapping[str, Any], epoch: Any) -> bool:
    counts = [clock["epoch"], clock["step"], clock["batch"]]
    return (
        clock.keys() == {"epoch", "step", "batch", "seconds"}
        and all(map(is_count, counts))
        and clock["epoch"] == epoch
        and clock["step"] >= epoch + clock["batch"]
        and is_number(clock["seconds"])
        and 0 <= clock["seconds"] < _LONGEST
    )


def _is_schedule(schedule: Mapping[str, Any]) -> bool:
    counts = [value for key, value in schedule.items() if key != "best"]
    return schedule.keys() == set(SCHEDULE) and all(map(is_count, counts)) and _is_figure(schedule["best"])


def _is_best(best: Mapping[str, Any], epoch: int) -> bool:
    """Of no epoch before the first is finished; from then on one that is finished, with its figures."""
    if epoch == 0:
        return best == {"loss": None, "epoch": 0, "metrics": {}}
    return (
        best.keys() == {"loss", "epoch", "metrics"}
        and best["loss"] is not None
        and _is_figure(best["loss"])
        and is_count(best["epoch"])
        and 1 <= best["epoch"] <= epoch
        and best["metrics"].keys() == FIGURES
        and all(map(_is_figure, best["metrics"].values()))
    )


def _is_row(row: Mapping[str, Any], epoch: int) -> bool:
    return (
        row.keys() == set(COLUMNS)
        and all(map(_is_figure, row.values()))
        and all(row[column] is not None for column in _ALWAYS_THERE)
        and row["epoch"] == epoch
    )


def _is_figure(value: Any) -> bool:
    return value is None or (is_number(value) and abs(value) < _LARGEST)


def require_fit(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless `tensors` are those `expected`, in names, shapes and types, and all finite."""
    if wrong := sorted(tensors.keys() ^ expected.keys()):
        raise ValueError(
            f"{short_repr(wrong[0])} is {'not in it' if wrong[0] in expected else 'no part of this model'}"
        )
    for name, like in expected.items():
        value = tensors[name]
        if (value.shape, value.dtype) != (like.shape, like.dtype):
            raise ValueError(f"{name} is {value.dtype} {tuple(value.shape)}, not {like.dtype} {tuple(like.shape)}")
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name} holds numbers that are not finite")
        if ".exp_avg_sq." in name and bool((value < 0).any()):
            raise ValueError(f"{name} holds squares below 0")


def require_scaling(scaler: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ValueError unless fp16's loss scaling is what it is `now` but for its scale; elsewhere both are empty."""
    is_of_numbers = scaler.keys() == now.keys() and all(map(is_number, scaler.values()))
    constants = now.keys() - {"scale", "_growth_tracker"}
    if not is_of_numbers or any(scaler[key] != now[key] for key in constants):
        raise ValueError("its loss scaling is not that of this precision")
    if now and not (scaler["scale"] > 0 and is_count(scaler["_growth_tracker"])):
        raise ValueError("its loss scaling can't be")
