"""The rare work before the first step: the run, the images, the machine, the model new or taken up again."""

import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
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
from aecli.runtime.distributed import World
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
from aecli.training.inputs.latent_sets import Encoder, encode_sets, resolve_model
from aecli.training.inputs.loaders import Feed, SetFeed, StreamFeed
from aecli.training.inputs.micro_batches import largest_piece
from aecli.training.run_choice import choose_run, resolved_options, share_choice
from aecli.training.state import TrainState
from aecli.training.state_schema import load_state
from aecli.training.sync import Exchange, FiniteWatch


@dataclass(frozen=True)
class Session:
    """Everything that the loop works with."""

    config: TrainConfig
    world: World
    folder: RunFolder
    state: TrainState
    compute_loss: StepLoss
    feed: Feed
    val: ImageSet
    placement: Placement
    validation_placement: Placement
    should_stop: StopRequest
    meter: Meter
    watch: FiniteWatch
    exchange: Exchange
    encoder: Encoder | None  # of a prior
    header: dict[str, Any]  # what model.safetensors says of itself, but for the epoch

    @property
    def batches(self) -> int:
        """Batches of the epoch under way: the feed's, or as many as are left of the steps asked for."""
        if self.config.steps is None:
            return self.feed.batches
        clock = self.state.clock
        return min(self.feed.batches, self.config.steps - (clock.step - clock.batch))

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to train."""
        clock = self.state.clock
        return clock.batch == 0 and is_over(self.config, clock.epoch, clock.step, self.state.stopped_early)


def is_over(config: TrainConfig, epochs: int, steps: int, stopped_early: bool) -> bool:
    """Whether so many whole epochs and steps are what was asked for."""
    return stopped_early or (epochs >= config.epochs if config.steps is None else steps >= config.steps)


def prepare(
    config: TrainConfig, world: World, should_stop: StopRequest, held: ExitStack
) -> Generator[TrainReport, None, Session | None]:
    """Report what is found on the way, and return the session, or None where the run is finished already.

    The run's folder is this process's, and no other's, until `held` closes; of several that train together, the first
    one's.

    Raises:
        AecliError: as `train`.
        Stopped: `should_stop` said so before there was anything to save.
    """
    placement = place(config.device, config.precision, training=True)
    if config.deterministic:
        make_deterministic()
    require_log(config.log)
    if config.compile == "on":
        require_compiler(placement.device)
    model_options, encoder = resolve_model(config)
    require_sense(config, world, placement)
    options = resolved_options(config, model_options, encoder)
    choice = share_choice(choose_run(config, options, held) if world.is_main else None, world)
    saved = load_state(choice.folder.last) if choice.resumes else None
    if saved:
        require_same(world, choice.folder, saved[1])
        if finished := _finished(choice.folder, saved[1], config):
            yield finished
            return None

    found, val, data_record = yield from gather_images(config, should_stop)
    world.wait_for_all()
    recorded = world.share(choice.folder.read_config() if choice.resumes and world.is_main else None)
    if choice.notice:
        yield Notice(choice.notice)
    changed = (yield from tell_changes(recorded, data_record)) if recorded else []
    require_same_images(world, data_record)

    state = _new_state(config, world, placement, model_options)
    if saved:
        _restore(state, *saved, path=choice.folder.last)
        if "data" in changed:
            state.restart_epoch()
        elif isinstance(found, Stream):
            _require_place(found, state, choice.folder.last)
        if not world.is_main:
            state.sums.zero_()  # those of all processes are the first one's
    if encoder:
        assert isinstance(state.model, Prior)  # for the type checker; resolve_model has looked
        found, val = yield from encode_sets(found, val, encoder, state.model, bool(saved), config, world, should_stop)
    # Of a prior, mirror images have latents of their own, in the set: those of others mean nothing mirrored.
    feed, val = _feed(found, val, replace(config, flip=config.flip and not encoder), placement, world, state, held)
    if state.clock.batch > feed.batches:  # fewer images can be read than then
        state.restart_epoch()
    require_batch_statistics(state.model, config, world, feed)
    require_whole_epochs(config, recorded, state, feed)
    loss = yield from _step_loss(config, world, state, placement, recorded, feed, should_stop)
    described = {**placement.describe(), "compile": loss.is_compiled, "processes": world.size}
    if world.is_main:
        _write_config(choice.folder, recorded, options, {"placement": described, **data_record})
    epochs = config.epochs if config.steps is None else -(-config.steps // feed.batches)
    header = {"model": config.model, "options": options["options"], "image_size": config.image_size, "fit": config.fit}
    watch = FiniteWatch(state)
    session = Session(
        config, world, choice.folder, state, loss, feed, val, placement, place(config.device, "auto"), should_stop,
        Meter(), watch, Exchange(world, state, watch, feed.cursors, should_stop), encoder, header,
    )  # fmt: skip
    yield Started(choice.folder, config.model, sum(p.numel() for p in state.model.parameters()),
                  None if isinstance(found, Stream) else feed.images, len(val), epochs, state.clock.epoch,
                  state.clock.batch, session.batches, described,
                  tuple(row["val_loss"] for row in state.rows if row["val_loss"] is not None))  # fmt: skip
    return session


def _new_state(config: TrainConfig, world: World, placement: Placement, model_options: Any) -> TrainState:
    torch.manual_seed(config.seed)
    model = registry.build(config.model, model_options).to(placement.device).to(memory_format=placement.memory_format)
    model = synchronise(model, config.sync_batchnorm, placement.device, world)
    return TrainState(model.train(), placement, config.lr, config.ema)


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
    world: World,
    state: TrainState,
    placement: Placement,
    recorded: Mapping[str, Any] | None,
    feed: Feed,
    should_stop: StopRequest,
) -> Generator[TrainReport, None, StepLoss]:
    """Compile the step if asked to, or if that pays; a run taken up again keeps to what it began with."""
    loss = StepLoss(state.model)
    if _should_compile(config, world, state, placement.device, recorded, feed):
        yield from _compile(loss, config, world, placement, feed, should_stop)
    if world.size > 1:
        loss.replicate(placement, largest_piece(config, world), config.image_size)
    return loss


def _compile(
    loss: StepLoss, config: TrainConfig, world: World, placement: Placement, feed: Feed, should_stop: StopRequest
) -> Generator[TrainReport, None, None]:
    """Compile the step in every process, or in none."""
    gain = "" if config.compile == "on" else " and saves more over this run"
    yield Notice(f"compiling the training step, which takes up to a minute{gain}")
    failure = loss.compile(placement, largest_piece(config, world), config.image_size)
    if should_stop():  # a terminal's Ctrl-C reaches the compiler too, whose failure then says nothing
        raise Stopped
    world.wait_for_all()
    failure = next((one for one in world.gather_json(failure) if one), None)
    if failure and config.compile == "on":
        raise DeviceError(f"--compile on: {failure}; use --compile off")
    if failure:
        loss.give_up_compiling()
        yield Notice(f"training without a compiled step, since {failure}")


def _should_compile(
    config: TrainConfig,
    world: World,
    state: TrainState,
    device: torch.device,
    recorded: Mapping[str, Any] | None,
    feed: Feed,
) -> bool:
    if config.compile != "auto":
        return config.compile == "on"
    same = recorded and all(recorded["options"].get(key) == getattr(config, key) for key in ("epochs", "steps"))
    if recorded and same and recorded["placement"]["device"] == str(device):
        return bool(recorded["placement"]["compile"])
    flops = 3 * forward_flops(state.model, config.image_size) * config.batch_size  # backward takes twice forward
    clock = state.clock
    steps = (config.epochs - clock.epoch) * feed.batches if config.steps is None else config.steps - clock.step
    return pays(device, steps, flops / world.size)


def _finished(folder: RunFolder, document: Mapping[str, Any], config: TrainConfig) -> Finished | None:
    """The report on a run that has nothing left to do, or None."""
    done, stopped_early, best = document["epoch"], document["stopped_early"], document["best"]
    clock = document["clock"]
    if clock["batch"] or not is_over(config, done, clock["step"], stopped_early):
        return None
    return Finished(folder, done, best["epoch"], best["metrics"], stopped_early, was_finished=True)


def _feed(
    found: ImageSet | Stream,
    val: ImageSet,
    config: TrainConfig,
    placement: Placement,
    world: World,
    state: TrainState,
    held: ExitStack,
) -> tuple[Feed, ImageSet]:
    """Return what batches come from, and the validation images, where they are had soonest."""
    if isinstance(found, ImageSet):
        train, val = bring_to_device(found, val, placement.device)
        return SetFeed(train, config, placement, world), val
    _, val = bring_to_device(val, val, placement.device)
    return held.enter_context(closing(StreamFeed(found, config, placement, world, state.cursors))), val


def _restore(state: TrainState, tensors: dict[str, torch.Tensor], document: dict[str, Any], path: Path) -> None:
    try:
        state.restore(tensors, document)
    except ValueError as error:
        raise _misfit(path, "this model", error) from error


def _require_place(stream: Stream, state: TrainState, path: Path) -> None:
    """Refuse a place in the stream where it never was."""
    try:
        if state.cursors is not None:
            stream.require_cursors(state.cursors)
    except ValueError as error:
        raise _misfit(path, "these images", error) from error


def _misfit(path: Path, what: str, error: ValueError) -> CheckpointError:
    return CheckpointError(f"{path} does not fit {what}: {error}; --restart begins the run again")
