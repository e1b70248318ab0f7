"""From a config to a session: what happens once, before the first step."""

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aecli.configs import TrainConfig
from aecli.data.image_ref import split_indices
from aecli.data.inventory import Listing
from aecli.data.streams import Stream
from aecli.errors import CheckpointError
from aecli.models.base import Autoencoder, Prior, kept
from aecli.progress import Notice, Progress, Stopped, StopRequest
from aecli.runs.data_changes import SourceChange, as_recorded, notices_of, source_changes
from aecli.runs.folder import RunFolder
from aecli.runtime.device import hardware
from aecli.runtime.distributed import Distributed
from aecli.runtime.versions import versions
from aecli.storage.strict_json import SCHEMA
from aecli.training.checks import (
    validate_batch_statistics,
    validate_best_by,
    validate_same_data,
    validate_same_state,
    validate_whole_epochs,
)
from aecli.training.events import Finished, Started, ThroughputMeter, TrainReport
from aecli.training.inputs.image_sets import (
    ImageSet,
    bring_to_device,
    gather_images,
    list_sources,
    read_given_images,
)
from aecli.training.inputs.latent_sets import encode_sets
from aecli.training.inputs.loaders import BatchLoader, DatasetLoader, StreamLoader
from aecli.training.inputs.overlap import Overlap, find_overlap
from aecli.training.inputs.preparation import preparation_batches, preparation_limit
from aecli.training.plan import Plan, resolve, with_classes
from aecli.training.run_choice import broadcast_choice, choose_run
from aecli.training.schedules import build_schedule
from aecli.training.session import Inputs, Session
from aecli.training.starting_weights import StartingWeights, load_starting_weights
from aecli.training.state import TrainState
from aecli.training.state_schema import StateDocument, load_state
from aecli.training.step import compile_step
from aecli.training.sync import LossSync
from aecli.training.validation import ValidationMetrics


@dataclass(frozen=True)
class OpenedRun:
    """The folder to train in; of a run that continues, also its config.json and last.safetensors."""

    folder: RunFolder
    notice: str | None = None
    recorded: dict[str, Any] | None = None
    saved: tuple[dict[str, Tensor], StateDocument] | None = None

    @property
    def step(self) -> int:
        """Its finished steps."""
        return self.saved[1].counters.step if self.saved else 0


@dataclass(frozen=True)
class Data:
    """Images to train and validate on, what config.json says of them, and whether a run began with other ones."""

    train: ImageSet | Stream
    val: ImageSet
    listings: Mapping[str, Listing]
    record: dict[str, Any]
    train_has_changed: bool


def prepare(
    config: TrainConfig, distributed: Distributed, should_stop: StopRequest, resources: ExitStack
) -> Generator[TrainReport, None, Session | None]:
    """Report the progress of setting up, and return the session, or None where the run is finished already.

    The run's folder is locked by the main process until `resources` closes.

    Raises:
        AecliError: as `train`.
        Stopped: `should_stop` returned True before there was anything to save.
    """
    config = yield from read_given_images(config, should_stop)
    plan = resolve(config, distributed)
    notices: list[TrainReport] = []
    listings = list_sources(config, notices.append)
    yield from notices
    plan = with_classes(plan, listings)
    run = open_run(plan, listings, resources)
    changes = source_changes(run.folder, run.recorded, plan.options, listings) if run.recorded else []
    plan = plan.for_images(listings, run.recorded)
    config = plan.config
    weights = load_starting_weights(plan) if run.saved is None else None
    if plan.init and run.recorded and plan.init.has_changed_since(run.recorded["options"]["init"]):
        yield Notice(f"--init {plan.init.given}: other weights by now than those that {run.folder.path} began from")
    for text in [*([run.notice] if run.notice else []), *notices_of(changes)]:
        yield Notice(text)
    if finished := _finished(run, plan):
        if distributed.is_main_process and run.recorded:
            _note_new_places(run.folder, run.recorded, changes)
        yield finished
        return None
    if weights is not None:
        yield Notice(weights.notice)
    data = yield from open_data(plan, run, listings, changes, should_stop)
    validate_best_by(config, len(data.val))
    state = build(plan, run, data, weights)
    inputs = yield from _open_inputs(plan, run, data, state, should_stop)
    if isinstance(inputs.loader, StreamLoader):
        resources.enter_context(closing(inputs.loader))
    _validate_epochs(plan, run, state, inputs.loader)
    if run.saved is None and weights is None:
        yield from _prepare_model(plan, state, data, inputs.loader.images, should_stop)
    step_model = yield from compile_step(plan, state, inputs.loader.batches, run.recorded, should_stop)
    placement = {
        **plan.placement.describe(), "compile": step_model.is_compiled, "processes": distributed.world_size,
    }  # fmt: skip
    if distributed.is_main_process:
        _write_config(run, plan, data, placement)
        if run.saved is not None:
            run.folder.write_metrics(state.rows)  # takes back rows of epochs after the last checkpoint
    sync = LossSync(distributed, state, inputs.loader.stream_positions, should_stop)
    optimization = config.optimization
    schedule = build_schedule(optimization, state.model.plateau_epochs, optimization.total_steps(inputs.loader.batches))
    metrics = ValidationMetrics.of(
        state.model, state.objective, config.data, len(inputs.val), plan.validation_placement.device
    )
    session = Session(plan, run.folder, state, inputs, step_model, schedule, metrics, sync, ThroughputMeter(),
                      should_stop, _conversions(data.record))  # fmt: skip
    yield _started(session, data, placement)
    start, steps = config.objective.adversarial_start, optimization.total_steps(inputs.loader.batches)
    if state.critics and start >= steps:
        yield Notice(
            f"--adversarial-start {start}: the run has {steps} steps, so that its adversarial loss never begins"
        )
    return session


def open_run(plan: Plan, listings: Mapping[str, Listing], resources: ExitStack) -> OpenedRun:
    """Choose and lock the run's folder, and read the run in it if that continues.

    Raises:
        CheckpointError, OutputError: as `choose_run`, or the run can't be read.
    """
    distributed = plan.distributed
    is_main = distributed.is_main_process
    choice = choose_run(plan.config, plan.options, listings, resources) if is_main else None
    choice = broadcast_choice(choice, distributed)
    if not choice.resumes:
        return OpenedRun(choice.folder, choice.notice)
    tensors, document = load_state(choice.folder.last)
    validate_same_state(distributed, choice.folder, document)
    # Anew: --patience may be another one than when it was saved.
    is_over = plan.config.optimization.stops_early(document.counters.epoch, document.best.epoch)
    document = replace(document, stopped_early=is_over)
    recorded = distributed.broadcast_object(choice.folder.read_config() if is_main else None)
    return OpenedRun(choice.folder, choice.notice, recorded, (tensors, document))


def _finished(run: OpenedRun, plan: Plan) -> Finished | None:
    """Return the report on a run in which nothing is left to train, or None."""
    if run.saved is None:
        return None
    state = run.saved[1]
    counters, best = state.counters, state.best
    if counters.batch or not plan.is_complete(counters.epoch, counters.step, state.stopped_early):
        return None
    return Finished(run.folder, counters.epoch, best.epoch, best.metrics, state.stopped_early, True,
                    conversions=_conversions(run.recorded or {}), findings=plan.findings(state.rows, best))  # fmt: skip


def _conversions(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was done to the images of each source of config.json."""
    sources = [record[key] for key in ("data", "val_data") if isinstance(record.get(key), dict)]
    return {str(each.get("source")): each.get("conversions") for each in sources}


def _note_new_places(folder: RunFolder, recorded: Mapping[str, Any], changes: Sequence[SourceChange]) -> None:
    """Write into config.json of a finished run where its images are now."""
    moved = {each.key: each.now for each in changes if each.is_moved and not each.difference}
    if moved:
        sources = {key: {**recorded[key], "source": now} for key, now in moved.items()}
        folder.write_config({**recorded, "options": {**recorded["options"], **moved}, **sources})


def open_data(
    plan: Plan,
    run: OpenedRun,
    listings: Mapping[str, Listing],
    changes: Sequence[SourceChange],
    should_stop: StopRequest,
) -> Generator[TrainReport, None, Data]:
    """Split and decode the images, or open the stream.

    Raises:
        AecliError: images or a cache that can't be used, or that differ between processes.
        Stopped: `should_stop` returned True.
    """
    recorded = run.recorded or {}
    if run.recorded:
        listings = {key: as_recorded(run.folder, recorded, key, listing) for key, listing in listings.items()}
    train, val, record = yield from gather_images(plan.config, listings, should_stop)
    plan.distributed.barrier()
    validate_same_data(plan.distributed, record)
    has_changed = bool(recorded) and recorded["data"].get("fingerprint") != record["data"]["fingerprint"]
    if has_changed and listings["data"].inventory is None:
        yield Notice(f"--data {plan.config.data.source}: not the shards that the run began with")
    if not recorded or any(each.difference for each in changes):
        is_main = plan.distributed.is_main_process
        found = plan.distributed.broadcast_object(asdict(_overlap(plan, listings)) if is_main else None)
        overlap = Overlap(**found)
        record["split"]["val_in_train"] = overlap.found
        if overlap.found:
            yield Notice(str(overlap))
    else:
        record["split"]["val_in_train"] = (recorded.get("split") or {}).get("val_in_train")
    record["changes"] = [
        *(recorded.get("changes") or []),
        *({"source": each.key, "step": run.step, **each.counts} for each in changes if each.counts),
    ]
    return Data(train, val, listings, record, has_changed)


def _overlap(plan: Plan, listings: Mapping[str, Listing]) -> Overlap:
    """Return how many validation images stand in training too; a stream's images are not known."""
    images = listings["data"].images
    if images is None:
        return Overlap(0, 0)
    if "val_data" in listings:
        return find_overlap(images, listings["val_data"].images or [])
    train, val = ([images[index] for index in side] for side in split_indices(images, plan.config.data.val_fraction))
    return find_overlap(train, val)


def build(plan: Plan, run: OpenedRun, data: Data, weights: StartingWeights | None) -> TrainState:
    """Return the state to train from: a new one, with `weights` if there are any, or that of the run that continues.

    Raises:
        CheckpointError: last.safetensors does not fit the model or the images.
    """
    state = plan.new_state(weights.tensors if weights else None)
    if run.saved is None:
        return state
    try:
        state.restore(*run.saved)
    except ValueError as error:
        raise _misfit(run.folder.last, "this model", error) from error
    if data.train_has_changed:
        state.restart_epoch()
    elif isinstance(data.train, Stream) and state.stream_positions is not None:
        try:
            data.train.require_positions(state.stream_positions)
        except ValueError as error:
            raise _misfit(run.folder.last, "these images", error) from error
    if not plan.distributed.is_main_process:
        state.sums.zero_()  # the main process's are those of all
    return state


def _misfit(path: Path, what: str, error: ValueError) -> CheckpointError:
    return CheckpointError(f"{path} does not fit {what}: {error}\nhint: --restart begins the run again")


def _open_inputs(
    plan: Plan, run: OpenedRun, data: Data, state: TrainState, should_stop: StopRequest
) -> Generator[TrainReport, None, Inputs]:
    """Return the loader, and the validation images on the device if they fit; of a prior, both of latents."""
    config, device, train, val = plan.config, plan.placement.device, data.train, data.val
    if plan.encoder:
        assert isinstance(state.model, Prior)  # for the type checker: resolve_model has checked
        is_fitted = run.saved is not None
        train, val = yield from encode_sets(
            train, val, plan.encoder, state.model, is_fitted, config, plan.distributed, should_stop
        )
        config = config.replace(flip=False)  # the set holds the latents of mirrored images: mirrored latents are none
    if isinstance(train, Stream):
        _, val = bring_to_device(val, val, device)
        return Inputs(StreamLoader(train, config, plan.placement, plan.distributed, state.stream_positions), val)
    train, val = bring_to_device(train, val, device)
    return Inputs(DatasetLoader(train, config, plan.placement, plan.distributed), val)


def _prepare_model(
    plan: Plan, state: TrainState, data: Data, epoch_images: int, should_stop: StopRequest
) -> Generator[TrainReport, None, None]:
    """Fit what a model fits to images before its first step, such as a linear path or a codebook.

    Raises:
        Stopped: `should_stop` returned True.
    """
    model, config = state.model, plan.config
    if not isinstance(model, Autoencoder) or type(model).prepare is Autoencoder.prepare:
        return
    limit = preparation_limit(config.data.image_size)
    if model.closed_form:  # all of its training
        limit = max(limit, epoch_images)

    def images() -> Generator[Tensor, None, None]:
        with closing(preparation_batches(data.train, config, plan.placement, limit)) as batches:
            for batch in batches:
                if should_stop():
                    raise Stopped
                yield batch

    yield Progress("fitting to images", 0, 1)
    torch.manual_seed(config.run.seed)
    state.prepare(images(), plan.distributed)


def _validate_epochs(plan: Plan, run: OpenedRun, state: TrainState, loader: BatchLoader) -> None:
    if state.counters.batch > loader.batches:  # fewer images can be read than when the epoch began
        state.restart_epoch()
    validate_batch_statistics(state.model, plan.config, plan.distributed, loader)
    validate_whole_epochs(plan.config, run.recorded, state, loader)


def _write_config(run: OpenedRun, plan: Plan, data: Data, placement: Mapping[str, Any]) -> None:
    """Write images.csv and config.json.

    A run that continues keeps the time at which it began, a new one clears the folder.
    """
    if not run.recorded and run.folder.exists():
        run.folder.clear()
    held = {key: listing.inventory for key, listing in data.listings.items() if listing.inventory is not None}
    is_new = not run.recorded or any(
        run.recorded[key]["fingerprint"] != data.record[key]["fingerprint"] for key in held
    )
    if is_new or not run.folder.images.exists():
        run.folder.write_images(held)
    options = plan.options
    if run.recorded:  # the weights may be others by now, or gone
        options = {**options, "init": run.recorded["options"].get("init")}
    run.folder.write_config({
        "schema": SCHEMA, "model": {"name": options["model"], "options": options["options"]}, "options": options,
        "augmentation": plan.config.data.augmentation, "placement": placement, **data.record,
        "versions": versions(), "hardware": hardware(),
        "began": run.recorded["began"] if run.recorded else time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    })  # fmt: skip


def _started(session: Session, data: Data, placement: dict[str, Any]) -> Started:
    state, inputs = session.state, session.inputs
    return Started(
        run=session.folder,
        model=session.config.model.name,
        parameters=sum(parameter.numel() for parameter in state.model.parameters()),
        train_images=None if isinstance(data.train, Stream) else inputs.loader.images,
        val_images=len(inputs.val),
        epochs=session.epochs,
        epochs_done=state.counters.epoch,
        batches_done=state.counters.batch,
        batches=session.batches,
        placement=placement,
        val_losses=tuple(row["val_loss"] for row in state.rows if row["val_loss"] is not None),
        augmentation=session.config.data.augmentation,
        kept=kept(state.model, session.config.data.image_size),
    )
