"""Which folder a train command works in: the run that it began before, or a new one."""

import dataclasses
import os
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from aecli.configs import MODEL_FLAGS, TrainConfig
from aecli.data.sources.shards import is_pattern
from aecli.errors import CheckpointError, OutputError, message_of
from aecli.models import registry
from aecli.runs.checkpoints import read_document
from aecli.runs.folder import RunFolder
from aecli.runtime.distributed import Distributed
from aecli.storage import atomic_files
from aecli.storage.atomic_files import list_names
from aecli.storage.locks import Lock
from aecli.storage.strict_json import is_count
from aecli.training.inputs.latent_sets import Encoder

# What may differ between a run and the command that continues it: it changes where and how long, not what.
_FREE = {"model_defaults", "epochs", "device", "workers", "cache", "checkpoint_every", "log", "out", "runs", "restart",
         "grad_accum", "sync_batchnorm"}  # fmt: skip


_FLAGS = {"model": "model", "autoencoder": "--model"}


@dataclass(frozen=True)
class RunChoice:
    """The folder, whether a run in it is to be continued, and what to tell the user, if anything."""

    folder: RunFolder
    resumes: bool
    notice: str | None = None


def resolved_options(config: TrainConfig, model_options: Any, encoder: Encoder | None) -> dict[str, Any]:
    """Return the options of `config` as JSON values: the model's worked out, paths absolute, weights by their hash."""
    values = config.flat()
    values["options"] = dataclasses.asdict(model_options)
    values["model_defaults"] = dict(config.model.defaults)
    values["autoencoder"] = encoder.record() if encoder else None
    for key in ("data", "val_data"):
        if values[key] not in (None, "demo") and (os.path.exists(values[key]) or is_pattern(values[key])):
            values[key] = os.path.realpath(values[key])
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}


def choose_run(config: TrainConfig, options: Mapping[str, Any], held: ExitStack | None) -> RunChoice:
    """Choose the folder for `config`, whose resolved options are `options`; it is this process's until `held` closes.

    Without `held`, nobody's: that tells what would be chosen, and writes nothing.

    With `--out`, that folder and no other; otherwise the last run under `--runs` that the same options began, or else
    a new folder there.

    Raises:
        CheckpointError: `--out` holds a run with other options.
        OutputError: `--out` holds something else, another process trains in the folder, or it can't be written.
    """
    return _in_named_folder(config, options, held) if config.run.out is not None else _under_runs(config, options, held)


def share_choice(choice: RunChoice | None, distributed: Distributed) -> RunChoice:
    """Return what the first process has chosen, to all."""
    told = distributed.broadcast_object([str(choice.folder.path), choice.resumes, choice.notice] if choice else None)
    return choice or RunChoice(RunFolder(Path(told[0])), told[1], told[2])


def _in_named_folder(config: TrainConfig, options: Mapping[str, Any], held: ExitStack | None) -> RunChoice:
    assert config.run.out is not None  # for the type checker; choose_run has looked
    folder = RunFolder(config.run.out)
    if not folder.exists() and is_taken(folder.path):
        raise OutputError(f"--out {folder.path} holds something other than a run; name a new or empty folder")
    _hold(folder, held)
    if not folder.exists():
        return RunChoice(folder, resumes=False)
    recorded = folder.read_config()  # fails where config.json is another program's, whose files are not ours to replace
    if config.run.restart:
        return RunChoice(folder, resumes=False, notice=f"restarting the run in {folder.path} from the beginning")
    difference = first_difference(recorded, options)
    if difference is not None:
        flag, before, now = difference
        raise CheckpointError(
            f"{folder.path} holds a run with {flag} {_shown(before)}, not {_shown(now)}: it can't change within a run\n"
            "give the same options, another --out, or --restart to begin it again"
        )
    if less := shrunk(config, folder):
        flag, before, now = less
        raise CheckpointError(f"{folder.path} holds a run of {before} {flag[2:]}: {flag} {now} may grow, not shrink")
    return RunChoice(folder, resumes=folder.last.exists())


def _under_runs(config: TrainConfig, options: Mapping[str, Any], held: ExitStack | None) -> RunChoice:
    name = registry.run_name(config.model.name)
    same: RunFolder | None = None
    notice = None
    for number in count(1):
        folder = RunFolder(config.run.runs / (name if number == 1 else f"{name}-{number}"))
        if not folder.exists():
            if is_taken(folder.path):
                continue  # somebody else's
            if same is not None:
                break
            if held is None:
                return RunChoice(folder, resumes=False)
            claim = Claim(folder)
            if not claim.take():
                notice = f"{claim.holder()} is beginning a run in {folder.path}"
                continue
            held.enter_context(closing(claim))
            if not folder.exists():
                return RunChoice(folder, resumes=False, notice=notice and f"{notice}: beginning {folder.path}")
            claim.close()  # begun and ended between two looks
        if not folder.is_ours():
            continue
        difference = first_difference(folder.read_config(), options)
        if difference is None and not config.run.restart:
            difference = shrunk(config, folder)
        if difference is None:
            same = folder
        else:
            flag, before, now = difference
            notice = f"{folder.path} holds a run with {flag} {_shown(before)}, not {_shown(now)}"
    assert same is not None
    _hold(same, held)
    if config.run.restart:
        return RunChoice(same, resumes=False, notice=f"restarting the run in {same.path} from the beginning")
    return RunChoice(same, resumes=same.last.exists())


def is_taken(path: Path) -> bool:
    """Whether something that is no run stands there: a file, or a folder that holds more than a killed run's locks."""
    return path.is_file() or (path.is_dir() and bool(list_names(path)))


def _hold(folder: RunFolder, held: ExitStack | None) -> None:
    """Take `folder` until `held` closes, if there is one; OutputError where another process trains in it."""
    if held is None:
        return
    claim = Claim(folder)
    if not claim.take():
        raise OutputError(
            f"{folder.path} is being trained by {claim.holder()}\nwait for its end, stop it, or name another --out"
        )
    held.enter_context(closing(claim))


def first_difference(recorded: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return (flag, recorded value, value now) of the first option that may not differ and does, or None."""
    before: Mapping[str, Any] = recorded["options"]
    for key, now in options.items():
        if key == "options":
            was = before.get(key) or {}
            for option in now:
                if was.get(option) != now[option]:
                    return MODEL_FLAGS.get(option, f"--option {option}"), was.get(option), now[option]
        elif key == "steps" and None not in (before.get(key), now):
            continue  # they may grow
        elif key not in _FREE and before.get(key) != now:
            return _FLAGS.get(key) or "--" + key.replace("_", "-"), _brief(before.get(key)), _brief(now)
    return None


def _brief(value: Any) -> Any:
    """An autoencoder by its path and the first digits of its weights' SHA-256; anything else as it is."""
    return f"{value.get('path')} ({str(value.get('sha256'))[:8]})" if isinstance(value, dict) else value


def _shown(value: Any) -> str:
    return "not given" if value is None else message_of(value)


def shrunk(config: TrainConfig, folder: RunFolder) -> tuple[str, int, int] | None:
    """Return (flag, how many the run has done, how many are asked for) where it has done more than that, or None."""
    epochs, steps = done(folder)
    if config.optimization.steps is not None:
        return ("--steps", steps, config.optimization.steps) if steps > config.optimization.steps else None
    return ("--epochs", epochs, config.optimization.epochs) if epochs > config.optimization.epochs else None


def done(folder: RunFolder) -> tuple[int, int]:
    """Return how many epochs and how many steps the run in `folder` has finished and saved."""
    if not folder.last.exists():
        return 0, 0
    try:
        document = read_document(folder.last)
    except CheckpointError as error:
        raise CheckpointError(f"{error}\n--restart begins the run again") from error
    try:
        epochs, steps = (document or {})["epoch"], (document or {})["clock"]["step"]
    except (KeyError, TypeError):
        epochs = steps = None
    if not (is_count(epochs) and is_count(steps)):
        raise CheckpointError(f"{folder.last} is not what aecli train writes; --restart begins the run again")
    return epochs, steps


class Claim:
    """The right to write a run folder; nobody else gets it before `close`, or before this process ends, however."""

    def __init__(self, folder: RunFolder) -> None:
        """Name the folder; nothing is made yet."""
        self.folder = folder
        self._lock = Lock(folder.lock, by_name=True)
        self._made: list[Path] = []

    def take(self) -> bool:
        """Make the folder and take it, tidied of what a killed process left half written; False where another has it.

        Raises:
            OutputError: the folder can't be made.
        """
        try:
            self._made = atomic_files.make_folder(self.folder.path)
            if not self._lock.take():
                return False
            for each in (self.folder.path, self.folder.previews):  # other processes may be writing further below
                atomic_files.remove_temporary_files(each, any_owner=self._lock.excludes)
        except OSError as error:
            self.close()
            raise OutputError(f"{self.folder.path} can't be written: {error.strerror or error}") from error
        return True

    def holder(self) -> str:
        """Who has it: `process 4242 on host-a`."""
        return self._lock.holder()

    def close(self) -> None:
        """Give it up; a folder made for a run that never began goes again."""
        self._lock.close()
        if not self.folder.exists():
            atomic_files.remove_empty_folders(self._made)
