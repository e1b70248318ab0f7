"""Which folder a train command works in: that of the run that it continues, or a new one."""

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from enum import IntEnum
from itertools import count
from pathlib import Path
from typing import Any

from aecli.configs import TrainConfig
from aecli.configs.checks import model_flag
from aecli.configs.given_images import PYTHON
from aecli.configs.train import DataConfig, train_options
from aecli.data.inventory import Listing
from aecli.data.sources.shards import is_pattern
from aecli.errors import CheckpointError, OutputError, message_of
from aecli.models import registry
from aecli.runs.checkpoints import read_document
from aecli.runs.data_changes import SOURCES, SourceChange, source_changes
from aecli.runs.folder import RunFolder
from aecli.runs.initial_weights import InitialWeights
from aecli.runtime.distributed import Distributed
from aecli.storage import atomic_files
from aecli.storage.atomic_files import list_names
from aecli.storage.locks import Lock
from aecli.training.inputs.latent_sets import LatentEncoder
from aecli.training.state_schema import Counters

# May change when a run continues: they say where and for how long it is computed, not what.
_MAY_CHANGE = {"model_defaults", *(each.name for each in train_options() if each.option.may_change)} - {"steps"}
# What another run can't have if it begins from the weights of one: another model or shape, fewer epochs.
_NOT_FROM_WEIGHTS = {"model", "--model", "--width", "--latent-dim", "--init", "--epochs", "--steps"}
_FLAGS = {"model": "model", "autoencoder": "--model"}

Difference = tuple[str, Any, Any]  # flag, recorded value, value now
Listings = Mapping[str, Listing]  # what `data` and, where it is given, `val_data` hold now


@dataclass(frozen=True)
class RunChoice:
    """The folder, whether the run in it continues, and a notice for the user, if there is one."""

    folder: RunFolder
    resumes: bool
    notice: str | None = None


def resolved_options(
    config: TrainConfig, model_options: Any, encoder: LatentEncoder | None, init: InitialWeights | None
) -> dict[str, Any]:
    """Return every option as config.json has it: defaults filled in, paths absolute, weights by their SHA-256."""
    values = config.flat()
    values["options"] = dataclasses.asdict(model_options)
    values["model_defaults"] = dict(config.model.defaults)
    values["autoencoder"] = encoder.record() if encoder else None
    values["init"] = init.record() if init else None
    for key in ("data", "val_data"):
        if values[key] not in (None, "demo") and (os.path.exists(values[key]) or is_pattern(values[key])):
            values[key] = os.path.realpath(values[key])
    resolved: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return resolved


def choose_run(
    config: TrainConfig, options: Mapping[str, Any], listings: Listings, held: ExitStack | None
) -> RunChoice:
    """Choose the folder for `config`, whose resolved options are `options`, and lock it until `held` closes.

    Without `held`, nothing is locked or written: a dry run.

    With `--out`, that folder and no other; otherwise the last run under `--runs` with the same options and images, or
    else a new folder there. A run's images are its own wherever they lie. Where some of them have changed, they are so
    only at their old place, or if that is gone.

    Raises:
        CheckpointError: `--out` holds a run with other options, or most of the run's images have changed.
        OutputError: `--out` holds something else, another process trains in the folder, or it can't be written.
    """
    if config.run.out is not None:
        return _in_named_folder(config, RunFolder(config.run.out), options, listings, held)
    return _under_runs(config, options, listings, held)


def broadcast_choice(choice: RunChoice | None, distributed: Distributed) -> RunChoice:
    """Return the main process's choice in all processes."""
    sent = distributed.broadcast_object([str(choice.folder.path), choice.resumes, choice.notice] if choice else None)
    return choice or RunChoice(RunFolder(Path(sent[0])), sent[1], sent[2])


def _in_named_folder(
    config: TrainConfig,
    folder: RunFolder,
    options: Mapping[str, Any],
    listings: Listings,
    held: ExitStack | None,
) -> RunChoice:
    if not folder.exists() and is_occupied(folder.path):
        raise OutputError(f"--out {folder.path}: holds something other than a run\nhint: name a new or empty folder")
    _lock(folder, held)
    if not folder.exists():
        return RunChoice(folder, resumes=False)
    recorded = folder.read_config()  # fails where config.json is another program's, whose files are not ours to replace
    if config.run.restart:
        return RunChoice(folder, resumes=False, notice=f"restarting the run in {folder.path} from the beginning")
    _require_given(config, folder, recorded)
    if difference := first_difference(recorded, options):
        raise CheckpointError(
            f"{_describe(folder, difference)}, which can't change within a run\n"
            f"hint: give the same options; or --restart; or another --out{_from_weights(folder, difference)}"
        )
    if refusal := changed_length(config, folder, recorded, options):
        raise refusal
    if difference := shrunk(config, folder):
        flag, done, asked = difference
        raise CheckpointError(f"{flag} {asked}: {folder.path} has trained {done} {flag[2:]}, which can only grow")
    require_its_images(config, folder, source_changes(folder, recorded, options, listings))
    return RunChoice(folder, resumes=folder.last.exists())


def _require_given(config: TrainConfig, folder: RunFolder, recorded: Mapping[str, Any]) -> None:
    """Raise CheckpointError where a run had images that were given in Python, and is asked for without any."""
    kind, _, given = recorded["options"]["data"].partition(":")
    if kind == PYTHON and config.data.source == DataConfig.source:
        raise CheckpointError(
            f"{folder.path} was trained on images given in Python ({message_of(given)}), and continues with them\n"
            f"hint: aecli.train(aecli.TrainConfig(…, data=…, out={str(folder.path)!r})), or another --out"
        )


def is_refused(config: TrainConfig, folder: RunFolder, options: Mapping[str, Any], listings: Listings) -> bool:
    """Whether the run in `folder` can't continue with these options and images."""
    recorded = folder.read_config()
    if first_difference(recorded, options) or shrunk(config, folder):
        return True
    if changed_length(config, folder, recorded, options):
        return True
    changes = source_changes(folder, recorded, options, listings)
    return any(each.is_other for each in changes) and not config.data.allow_changed_data


def require_its_images(config: TrainConfig, folder: RunFolder, changes: Sequence[SourceChange]) -> None:
    """Raise CheckpointError where most images of a run have changed, unless `--allow-changed-data` says to go on."""
    other = next((each for each in changes if each.is_other), None)
    if other is not None and not config.data.allow_changed_data:
        what = f": {other.difference}" if other.difference else f" ({message_of(other.was)})"
        raise CheckpointError(
            f"{other.flag} {other.now}: not the images that {folder.path} was trained on{what}\n"
            "hint: --allow-changed-data resumes it with them; another --out begins a new run, --restart this one again"
        )


def _under_runs(
    config: TrainConfig, options: Mapping[str, Any], listings: Listings, held: ExitStack | None
) -> RunChoice:
    name = registry.run_name(config.model.name)
    same: tuple[_Images, RunFolder, list[SourceChange]] | None = None
    notice, refusal = None, None
    for folder in _runs_called(name, config.run.runs):
        recorded = folder.read_config()
        difference = first_difference(recorded, options)
        if difference is None and not config.run.restart:
            if refused := changed_length(config, folder, recorded, options):
                refusal = refused
                continue
            difference = shrunk(config, folder)
        if difference is not None:
            notice = _describe(folder, difference) + _from_weights(folder, difference)
            continue
        changes = source_changes(folder, recorded, options, listings)
        images = _compare(config, changes)
        if images is _Images.ANOTHERS:
            moved = next(each for each in changes if each.is_moved)
            notice = _describe(folder, (moved.flag, moved.was, moved.now))
        elif same is None or images >= same[0]:
            same = images, folder, changes
    if same is None and refusal is not None:
        raise refusal
    if same is None:
        return _begin_under_runs(config, options, listings, held, notice)
    _, chosen, changes = same
    if not config.run.restart:
        require_its_images(config, chosen, changes)
    _lock(chosen, held)
    if config.run.restart:
        return RunChoice(chosen, resumes=False, notice=f"restarting the run in {chosen.path} from the beginning")
    return RunChoice(chosen, resumes=chosen.last.exists())


def _runs_called(name: str, runs: Path) -> list[RunFolder]:
    """Return the runs in `name`, `name-2`, … by their numbers, of which some may be missing."""
    pattern = re.compile(rf"{re.escape(name)}(?:-([1-9]\d*))?")
    matches = [(each, pattern.fullmatch(each)) for each in (os.listdir(runs) if runs.is_dir() else ())]
    numbered = sorted((int(match[1] or 1), each) for each, match in matches if match)
    return [folder for _, each in numbered if (folder := RunFolder(runs / each)).is_ours()]


def _begin_under_runs(
    config: TrainConfig, options: Mapping[str, Any], listings: Listings, held: ExitStack | None, notice: str | None
) -> RunChoice:
    """Choose the first free folder; `notice` says what keeps the command from continuing the last run."""
    name = registry.run_name(config.model.name)
    numbers = count(1)
    while True:
        number = next(numbers)
        folder = RunFolder(config.run.runs / (name if number == 1 else f"{name}-{number}"))
        if folder.exists() or is_occupied(folder.path):
            continue
        if held is None:
            return RunChoice(folder, resumes=False)
        lock = RunLock(folder)
        if not lock.take():
            notice = f"{lock.holder()} is beginning a run in {folder.path}"
            continue
        if folder.exists():  # another process began and ended a run there before the lock was taken
            lock.close()
            return _under_runs(config, options, listings, held)
        held.enter_context(closing(lock))
        return RunChoice(folder, resumes=False, notice=notice and f"{notice}: beginning {folder.path}")


class _Images(IntEnum):
    """What the images of a command are to a run with the same options; the higher one is the run that continues."""

    ANOTHERS = 0
    OTHERS_IN_THEIR_PLACE = 1
    MOST = 2
    ALL = 3


def _compare(config: TrainConfig, changes: Sequence[SourceChange]) -> _Images:
    if all(each.may_follow for each in changes):
        return _Images.MOST if any(each.difference for each in changes) else _Images.ALL
    if config.data.allow_changed_data:
        return _Images.MOST
    return _Images.ANOTHERS if any(each.is_moved for each in changes) else _Images.OTHERS_IN_THEIR_PLACE


def is_occupied(path: Path) -> bool:
    """Whether a file, or a folder with anything but the locks and temporary files of a killed run, is there."""
    return path.is_file() or (path.is_dir() and bool(list_names(path)))


def _lock(folder: RunFolder, held: ExitStack | None) -> None:
    """Lock `folder` until `held` closes, if there is one; OutputError where another process trains in it."""
    if held is None:
        return
    lock = RunLock(folder)
    if not lock.take():
        hint = "close() the iterator of its aecli.train" if lock.is_ours else "wait for its end, stop it"
        raise OutputError(f"{folder.path} is being trained by {lock.holder()}\nhint: {hint}, or name another --out")
    held.enter_context(closing(lock))


def first_difference(recorded: Mapping[str, Any], options: Mapping[str, Any]) -> Difference | None:
    """Return the first option that may not change within a run and differs from the recorded config, or None.

    `recorded` is as `read_config` completes it; options that this version doesn't know are ignored.
    """
    before = recorded["options"]
    for key, now in sorted(options.items(), key=lambda each: each[0] != "init"):  # from which others may follow
        was = before.get(key)
        if key == "options":
            if difference := _model_difference(was, now, options.get("model")):
                return difference
        elif key == "init" and _is_same_start(was, now):
            continue
        elif key == "steps" and None not in (was, now):
            continue  # they may grow
        elif key in SOURCES and (was is None) != (now is None) or key not in _MAY_CHANGE and was != now:
            return _FLAGS.get(key) or "--" + key.replace("_", "-"), _brief(was), _brief(now)
    return None


def _model_difference(was: Any, now: Mapping[str, Any], model: str | None) -> Difference | None:
    fields = dataclasses.fields(registry.load(model).Options) if model else ()
    before = {each.name: None if each.default is dataclasses.MISSING else each.default for each in fields}
    before = {name: list(value) if isinstance(value, tuple) else value for name, value in before.items()}
    before |= was if isinstance(was, dict) else {}
    for option, value in now.items():
        if before.get(option) != value:
            return model_flag(option), before.get(option), value
    return None


def _is_same_start(was: Any, now: Any) -> bool:
    """Whether two records of initial weights are of one name or content: a run doesn't need them any more."""
    if not (isinstance(was, dict) and isinstance(now, dict)):
        return was is now is None
    return bool(was.get("given") == now["given"] or (now["sha256"] and was.get("sha256") == now["sha256"]))


def _brief(value: Any) -> Any:
    """Weights by their path and the first digits of its SHA-256; anything else as it is."""
    return (
        f"{value.get('path') or value.get('given')} ({str(value.get('sha256'))[:8]})"
        if isinstance(value, dict)
        else value
    )


def _describe(folder: RunFolder, difference: Difference) -> str:
    flag, before, now = (message_of("none" if part is None else part) for part in difference)
    return f"{folder.path} holds a run with {flag} {before}, not {now}"


def changed_length(
    config: TrainConfig, folder: RunFolder, recorded: Mapping[str, Any], options: Mapping[str, Any]
) -> CheckpointError | None:
    """Return what to raise where the length of a run changes whose learning rate falls to 0 at its end, or None."""
    key = "epochs" if config.optimization.steps is None else "steps"
    before, now = recorded["options"].get(key), options[key]
    if config.optimization.schedule != "cosine" or before == now:
        return None
    return CheckpointError(
        f"--{key} {now}: {folder.path} has a cosine over {before} {key}, which can't become longer or shorter\n"
        f"hint: --restart begins it again, --out DIR another run, --init {folder.path} another from its weights"
    )


def _from_weights(folder: RunFolder, difference: Difference) -> str:
    """Return, in brackets, how another run could begin from the weights of this one, if it can."""
    flag = difference[0]
    can = folder.model.exists() and flag not in _NOT_FROM_WEIGHTS and not flag.startswith("--option")
    return f" (--init {folder.path} would begin from its weights)" if can else ""


def shrunk(config: TrainConfig, folder: RunFolder) -> Difference | None:
    """Return (flag, how many the run has trained, how many are asked for) where these are fewer, or None."""
    epochs, steps = progress(folder)
    if config.optimization.steps is not None:
        return ("--steps", steps, config.optimization.steps) if steps > config.optimization.steps else None
    return ("--epochs", epochs, config.optimization.epochs) if epochs > config.optimization.epochs else None


def progress(folder: RunFolder) -> tuple[int, int]:
    """Return how many epochs and steps the run in `folder` has finished and saved; raises CheckpointError."""
    if not folder.last.exists():
        return 0, 0
    try:
        document = read_document(folder.last)
    except CheckpointError as error:
        raise CheckpointError(f"{error}\nhint: --restart begins the run again") from error
    try:
        counters = Counters.from_document((document or {})["clock"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{folder.last} is not a training state\nhint: --restart begins the run again") from error
    return counters.epoch, counters.step


class RunLock:
    """The lock of a run folder, held until `close` or the end of this process, however it ends."""

    def __init__(self, folder: RunFolder) -> None:
        """Name the folder; nothing is made yet."""
        self.folder = folder
        self._lock = Lock(folder.lock, by_name=True)
        self._made: list[Path] = []

    def take(self) -> bool:
        """Make the folder, lock it and remove the temporary files of a killed process; False where another has it.

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
        """Return who has it: `process 4242 on host-a`."""
        return self._lock.holder()

    @property
    def is_ours(self) -> bool:
        """Whether this very process has it, in another training."""
        return self._lock.is_ours

    def close(self) -> None:
        """Release it; a folder that was made for a run which never began is removed."""
        self._lock.close()
        if not self.folder.exists():
            atomic_files.remove_empty_folders(self._made)
