"""Which folder a train command works in: the run that it began before, or a new one."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from aecli.checkpoints import read_document
from aecli.configs import MODEL_FLAGS, TrainConfig
from aecli.errors import CheckpointError, OutputError
from aecli.models import registry
from aecli.runs import RunFolder

# What may differ between a run and the command that continues it: it changes where and how long, not what.
_FREE = {"model_defaults", "epochs", "device", "workers", "cache", "out", "runs", "restart"}


@dataclass(frozen=True)
class RunChoice:
    """The folder, whether a run in it is to be continued, and what to tell the user, if anything."""

    folder: RunFolder
    resumes: bool
    notice: str | None = None


def resolved_options(config: TrainConfig, model_options: Any) -> dict[str, Any]:
    """Return the options of `config` as JSON values: the model's worked out, paths absolute."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    values["options"] = dataclasses.asdict(model_options)
    values["model_defaults"] = dict(config.model_defaults)
    for key in ("data", "val_data"):
        if values[key] not in (None, "demo") and os.path.exists(values[key]):
            values[key] = os.path.realpath(values[key])
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}


def choose_run(config: TrainConfig, options: Mapping[str, Any]) -> RunChoice:
    """Choose the folder for `config`, whose resolved options are `options`.

    With `--out`, that folder and no other; otherwise the last run under `--runs` that the same options began, or else
    a new folder there.

    Raises:
        CheckpointError: `--out` holds a run with other options.
        OutputError: `--out` holds something else.
    """
    return _in_named_folder(config, options) if config.out is not None else _under_runs(config, options)


def _in_named_folder(config: TrainConfig, options: Mapping[str, Any]) -> RunChoice:
    assert config.out is not None  # for the type checker; choose_run has looked
    folder = RunFolder(config.out)
    if not folder.exists():
        if folder.path.is_file() or (folder.path.is_dir() and any(folder.path.iterdir())):
            raise OutputError(f"--out {folder.path} holds something other than a run; name a new or empty folder")
        return RunChoice(folder, resumes=False)
    recorded = folder.read_config()  # fails where config.json is another program's, whose files are not ours to replace
    if config.restart:
        return RunChoice(folder, resumes=False, notice=f"restarting the run in {folder.path} from the beginning")
    difference = first_difference(recorded, options)
    if difference is not None:
        flag, before, now = difference
        raise CheckpointError(
            f"{folder.path} holds a run with {flag} {_shown(before)}, not {_shown(now)}: it can't change within a run\n"
            "give the same options, another --out, or --restart to begin it again"
        )
    if config.epochs < epochs_done(folder):
        raise CheckpointError(f"{folder.path} holds a run of {epochs_done(folder)} epochs: --epochs {config.epochs} "
                              "may grow, not shrink")  # fmt: skip
    return RunChoice(folder, resumes=folder.last.exists())


def _under_runs(config: TrainConfig, options: Mapping[str, Any]) -> RunChoice:
    name = registry.run_name(config.model)
    others = []
    same = []
    for number in count(1):
        folder = RunFolder(config.runs / (name if number == 1 else f"{name}-{number}"))
        if not folder.exists():
            if folder.path.is_dir() and any(folder.path.iterdir()):
                continue  # somebody else's
            break
        if not folder.is_ours():
            continue
        difference = first_difference(folder.read_config(), options)
        if difference is None and (config.restart or epochs_done(folder) <= config.epochs):
            same.append(folder)
        else:
            others.append((folder, difference or ("--epochs", epochs_done(folder), config.epochs)))
    if same and config.restart:
        return RunChoice(same[-1], resumes=False, notice=f"restarting the run in {same[-1].path} from the beginning")
    if same:
        return RunChoice(same[-1], resumes=same[-1].last.exists())
    notice = None
    if others:
        other, (flag, before, now) = others[-1]
        notice = f"{other.path} holds a run with {flag} {_shown(before)}, not {_shown(now)}: beginning {folder.path}"
    return RunChoice(folder, resumes=False, notice=notice)


def first_difference(recorded: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return (flag, recorded value, value now) of the first option that may not differ and does, or None."""
    before: Mapping[str, Any] = recorded["options"]
    for key, now in options.items():
        if key == "options":
            was = before.get(key) or {}
            for option in now:
                if was.get(option) != now[option]:
                    return MODEL_FLAGS.get(option, f"--option {option}"), was.get(option), now[option]
        elif key not in _FREE and before.get(key) != now:
            return "model" if key == "model" else "--" + key.replace("_", "-"), before.get(key), now
    return None


def _shown(value: Any) -> str:
    return "not given" if value is None else str(value)


def epochs_done(folder: RunFolder) -> int:
    """Return how many epochs the run in `folder` has finished and saved."""
    if not folder.last.exists():
        return 0
    document = read_document(folder.last)
    if document is None or not isinstance(document.get("epoch"), int):
        raise CheckpointError(f"{folder.last} is not what aecli train writes; --restart begins the run again")
    return int(document["epoch"])
