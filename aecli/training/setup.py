"""The rare work before the first step: the run, the images, the machine, the model new or taken up again."""

import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aecli.configs import TrainConfig
from aecli.data.streams import Stream
from aecli.errors import CheckpointError, DeviceError
from aecli.models import registry
from aecli.models.base import Prior
from aecli.models.flops import forward_flops
from aecli.progress import Notice, Stopped, StopRequest
from aecli.runs.folder import RunFolder
from aecli.runtime.device import Placement, hardware, make_deterministic, place, versions
from aecli.runtime.distributed import Distributed
from aecli.storage.strict_json import SCHEMA
from aecli.training.checks import (
    require_batch_statistics,
    require_log,
    require_same,
    require_same_images,
    require_sense,
    require_whole_epochs,
    tell_changes,
)
from aecli.training.compiling import StepLoss, pays, require_compiler, synchronise
from aecli.training.events import Finished, Meter, Started, TrainReport
from aecli.training.inputs.image_sets import ImageSet, bring_to_device, gather_images
from aecli.training.inputs.latent_sets import LatentEncoder, encode_sets, resolve_model
from aecli.training.inputs.loaders import BatchLoader, DatasetLoader, StreamLoader
from aecli.training.inputs.micro_batches import largest_micro_batch
from aecli.training.run_choice import broadcast_choice, choose_run, resolved_options
from aecli.training.state import TrainState
from aecli.training.state_schema import StateDocument, load_state
from aecli.training.sync import LossSync, NonFiniteDetector


@dataclass(frozen=True)
class Session:
    """Everything that the loop works with."""

    config: TrainConfig
    distributed: Distributed
    folder: RunFolder
    state: TrainState
    compute_loss: StepLoss
    loader: BatchLoader
    val: ImageSet
    placement: Placement
    validation_placement: Placement
    should_stop: StopRequest
    meter: Meter
    watch: NonFiniteDetector
    exchange: LossSync
    encoder: LatentEncoder | None  # of a prior
    header: dict[str, Any]  # what model.safetensors says of itself, but for the epoch

    @property
    def batches(self) -> int:
        """Batches of the epoch under way: the feed's, or as many as are left of the steps asked for."""
        if self.config.optimization.steps is None:
            return self.loader.batches
        counters = self.state.counters
        return min(self.loader.batches, self.config.optimization.steps - (counters.step - counters.batch))

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to train."""
        counters = self.state.counters
        return counters.batch == 0 and is_over(self.config, counters.epoch, counters.step, self.state.stopped_early)


def is_over(config: TrainConfig, epochs: int, steps: int, stopped_early: bool) -> bool:
    """Whether so many whole epochs and steps are what was asked for."""
    return stopped_early or (
        epochs >= config.optimization.epochs
        if config.optimization.steps is None
        else steps >= config.optimization.steps
    )


def prepare(
    config: TrainConfig, distributed: Distributed, should_stop: StopRequest, held: ExitStack
) -> Generator[TrainReport, None, Session | None]:
    """Report what is found on the way, and return the session, or None where the run is finished already.

    The run's folder is this process's, and no other's, until `held` closes; of several that train together, the first
    one's.

    Raises:
        AecliError: as `train`.
        Stopped: `should_stop` said so before there was anything to save.
    """
    placement = place(config.run.device, config.run.precision, training=True)
    if config.run.deterministic:
        make_deterministic()
    require_log(config.run.log)
    if config.run.compile == "on":
        require_compiler(placement.device)
    model_options, encoder = resolve_model(config)
    require_sense(config, distributed, placement)
    options = resolved_options(config, model_options, encoder)
    choice = broadcast_choice(choose_run(config, options, held) if distributed.is_main_process else None, distributed)
    saved = load_state(choice.folder.last) if choice.resumes else None
    if saved:
        require_same(distributed, choice.folder, saved[1])
        if finished := _finished(choice.folder, saved[1], config):
            yield finished
            return None

    found, val, data_record = yield from gather_images(config, should_stop)
    distributed.barrier()
    recorded = distributed.broadcast_object(
        choice.folder.read_config() if choice.resumes and distributed.is_main_process else None
    )
    if choice.notice:
        yield Notice(choice.notice)
    changed = (yield from tell_changes(recorded, data_record)) if recorded else []
    require_same_images(distributed, data_record)

    state = _new_state(config, distributed, placement, model_options)
    if saved:
        _restore(state, *saved, path=choice.folder.last)
        if "data" in changed:
            state.restart_epoch()
        elif isinstance(found, Stream):
            _require_place(found, state, choice.folder.last)
        if not distributed.is_main_process:
            state.sums.zero_()  # those of all processes are the first one's
    if encoder:
        assert isinstance(state.model, Prior)  # for the type checker; resolve_model has looked
        found, val = yield from encode_sets(
            found, val, encoder, state.model, bool(saved), config, distributed, should_stop
        )
    # Of a prior, mirror images have latents of their own, in the set: those of others mean nothing mirrored.
    loader, val = _open_loader(
        found, val, config.replace(flip=config.data.flip and not encoder), placement, distributed, state, held
    )
    if state.counters.batch > loader.batches:  # fewer images can be read than then
        state.restart_epoch()
    require_batch_statistics(state.model, config, distributed, loader)
    require_whole_epochs(config, recorded, state, loader)
    loss = yield from _step_loss(config, distributed, state, placement, recorded, loader, should_stop)
    described = {**placement.describe(), "compile": loss.is_compiled, "processes": distributed.world_size}
    if distributed.is_main_process:
        _write_config(choice.folder, recorded, options, {"placement": described, **data_record})
    epochs = (
        config.optimization.epochs
        if config.optimization.steps is None
        else -(-config.optimization.steps // loader.batches)
    )
    header = {
        "model": config.model.name,
        "options": options["options"],
        "image_size": config.data.image_size,
        "fit": config.data.fit,
    }
    watch = NonFiniteDetector(state)
    session = Session(
        config, distributed, choice.folder, state, loss, loader, val, placement, place(config.run.device, "auto"),
        should_stop, Meter(), watch, LossSync(distributed, state, watch, loader.stream_positions, should_stop),
        encoder, header,
    )  # fmt: skip
    yield Started(choice.folder, config.model.name, sum(p.numel() for p in state.model.parameters()),
                  None if isinstance(found, Stream) else loader.images, len(val), epochs, state.counters.epoch,
                  state.counters.batch, session.batches, described,
                  tuple(row["val_loss"] for row in state.rows if row["val_loss"] is not None))  # fmt: skip
    return session


def _new_state(config: TrainConfig, distributed: Distributed, placement: Placement, model_options: Any) -> TrainState:
    torch.manual_seed(config.run.seed)
    model = (
        registry.build(config.model.name, model_options).to(placement.device).to(memory_format=placement.memory_format)
    )
    model = synchronise(model, config.optimization.sync_batchnorm, placement.device, distributed)
    return TrainState(model.train(), placement, config.optimization.lr, config.optimization.ema)


def _write_config(
    folder: RunFolder, recorded: Mapping[str, Any] | None, options: Mapping[str, Any], found: Mapping[str, Any]
) -> None:
    """Write config.json, of a run taken up again with the time at which it began; a new one's folder is cleared."""
    if not recorded and folder.exists():
        folder.clear()
    folder.write_config({
        "schema": SCHEMA, "model": {"name": options["model"], "options": options["options"]}, "options": options,
        **found, "versions": versions(), "hardware": hardware(),
        "began": recorded["began"] if recorded else time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    })  # fmt: skip


def _step_loss(
    config: TrainConfig,
    distributed: Distributed,
    state: TrainState,
    placement: Placement,
    recorded: Mapping[str, Any] | None,
    loader: BatchLoader,
    should_stop: StopRequest,
) -> Generator[TrainReport, None, StepLoss]:
    """Compile the step if asked to, or if that pays; a run taken up again keeps to what it began with."""
    loss = StepLoss(state.model)
    if _should_compile(config, distributed, state, placement.device, recorded, loader):
        yield from _compile(loss, config, distributed, placement, loader, should_stop)
    if distributed.world_size > 1:
        loss.replicate(placement, largest_micro_batch(config, distributed), config.data.image_size)
    return loss


def _compile(
    loss: StepLoss,
    config: TrainConfig,
    distributed: Distributed,
    placement: Placement,
    loader: BatchLoader,
    should_stop: StopRequest,
) -> Generator[TrainReport, None, None]:
    """Compile the step in every process, or in none."""
    gain = "" if config.run.compile == "on" else " and saves more over this run"
    yield Notice(f"compiling the training step, which takes up to a minute{gain}")
    failure = loss.compile(placement, largest_micro_batch(config, distributed), config.data.image_size)
    if should_stop():  # a terminal's Ctrl-C reaches the compiler too, whose failure then says nothing
        raise Stopped
    distributed.barrier()
    failure = next((one for one in distributed.all_gather_object(failure) if one), None)
    if failure and config.run.compile == "on":
        raise DeviceError(f"--compile on: {failure}; use --compile off")
    if failure:
        loss.give_up_compiling()
        yield Notice(f"training without a compiled step, since {failure}")


def _should_compile(
    config: TrainConfig,
    distributed: Distributed,
    state: TrainState,
    device: torch.device,
    recorded: Mapping[str, Any] | None,
    loader: BatchLoader,
) -> bool:
    if config.run.compile != "auto":
        return config.run.compile == "on"
    same = recorded and all(
        recorded["options"].get(key) == getattr(config.optimization, key) for key in ("epochs", "steps")
    )
    if recorded and same and recorded["placement"]["device"] == str(device):
        return bool(recorded["placement"]["compile"])
    flops = (
        3 * forward_flops(state.model, config.data.image_size) * config.optimization.batch_size
    )  # backward takes twice forward
    counters = state.counters
    steps = (
        (config.optimization.epochs - counters.epoch) * loader.batches
        if config.optimization.steps is None
        else config.optimization.steps - counters.step
    )
    return pays(device, steps, flops / distributed.world_size)


def _finished(folder: RunFolder, state: StateDocument, config: TrainConfig) -> Finished | None:
    """The report on a run that has nothing left to do, or None."""
    counters, best = state.counters, state.best
    if counters.batch or not is_over(config, counters.epoch, counters.step, state.stopped_early):
        return None
    return Finished(folder, counters.epoch, best.epoch, best.metrics, state.stopped_early, was_finished=True)


def _open_loader(
    found: ImageSet | Stream,
    val: ImageSet,
    config: TrainConfig,
    placement: Placement,
    distributed: Distributed,
    state: TrainState,
    held: ExitStack,
) -> tuple[BatchLoader, ImageSet]:
    """Return what batches come from, and the validation images, where they are had soonest."""
    if isinstance(found, ImageSet):
        train, val = bring_to_device(found, val, placement.device)
        return DatasetLoader(train, config, placement, distributed), val
    _, val = bring_to_device(val, val, placement.device)
    return held.enter_context(closing(StreamLoader(found, config, placement, distributed, state.stream_positions))), val


def _restore(state: TrainState, tensors: dict[str, torch.Tensor], document: StateDocument, path: Path) -> None:
    try:
        state.restore(tensors, document)
    except ValueError as error:
        raise _misfit(path, "this model", error) from error


def _require_place(stream: Stream, state: TrainState, path: Path) -> None:
    """Refuse a place in the stream where it never was."""
    try:
        if state.stream_positions is not None:
            stream.require_positions(state.stream_positions)
    except ValueError as error:
        raise _misfit(path, "these images", error) from error


def _misfit(path: Path, what: str, error: ValueError) -> CheckpointError:
    return CheckpointError(f"{path} does not fit {what}: {error}\nhint: --restart begins the run again")
