"""The rare work before the first step: the run, the images, the machine, the model new or taken up again."""

import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aecli.configs import TrainConfig
from aecli.errors import CheckpointError, ConfigError, DeviceError
from aecli.models import registry
from aecli.models.flops import forward_flops
from aecli.progress import Notice
from aecli.runs import RunFolder
from aecli.runtime.device import Placement, hardware, make_deterministic, place, versions
from aecli.training.compiling import StepLoss, pays, require_compiler
from aecli.training.finite import FiniteWatch
from aecli.training.images import ImageSet, Stopped, StopRequest, bring_to_device, gather_images
from aecli.training.meter import Meter
from aecli.training.reports import Finished, Started, TrainReport
from aecli.training.run_choice import choose_run, resolved_options
from aecli.training.saved_state import load_state
from aecli.training.state import TrainState
from aecli.untrusted import SCHEMA


@dataclass(frozen=True)
class Session:
    """Everything that the loop works with."""

    config: TrainConfig
    folder: RunFolder
    state: TrainState
    compute_loss: StepLoss
    train: ImageSet
    val: ImageSet
    placement: Placement
    validation_placement: Placement
    should_stop: StopRequest
    meter: Meter
    watch: FiniteWatch
    batches: int  # an epoch; the last may be short
    header: dict[str, Any]  # what model.safetensors says of itself, but for the epoch

    @property
    def is_done(self) -> bool:
        """Whether no epoch is left."""
        return self.state.clock.epoch >= self.config.epochs or self.state.stopped_early


def prepare(
    config: TrainConfig, should_stop: StopRequest, held: ExitStack
) -> Generator[TrainReport, None, Session | None]:
    """Report what is found on the way, and return the session, or None where the run is finished already.

    The run's folder is this process's until `held` closes.

    Raises:
        AecliError: as `train`.
        Stopped: `should_stop` said so before there was anything to save.
    """
    placement = place(config.device, config.precision, training=True)
    if config.deterministic:
        make_deterministic()
    if config.compile == "on":
        require_compiler(placement.device)
    model_options = registry.resolve_options(config.model, config.options, config.model_defaults)
    multiple = registry.load(config.model).size_multiple
    if config.image_size % multiple:
        raise ConfigError(f"--image-size {config.image_size}: model {config.model!r} needs a multiple of {multiple}")
    options = resolved_options(config, model_options)
    choice = choose_run(config, options, held)
    saved = load_state(choice.folder.last) if choice.resumes else None
    if saved and (finished := _finished(choice.folder, saved[1], config.epochs)):
        yield finished
        return None

    train, val, data_record = yield from gather_images(config, should_stop)
    if choice.notice:
        yield Notice(choice.notice)
    recorded = choice.folder.read_config() if choice.resumes else None
    changed = (yield from _tell_changes(recorded, data_record)) if recorded else []

    torch.manual_seed(config.seed)
    model = registry.build(config.model, model_options).to(placement.device).to(memory_format=placement.memory_format)
    _require_batch_statistics(model, config, len(train))
    state = TrainState(model.train(), placement, config.lr, config.ema)
    batches = -(-len(train) // config.batch_size)
    if saved and recorded:
        _restore(state, *saved, path=choice.folder.last)
        if "data" in changed or state.clock.batch > batches:  # fewer images can be read than then
            state.restart_epoch()
    loss = yield from _step_loss(config, state, placement, recorded, batches, should_stop)
    if not recorded and choice.folder.exists():
        choice.folder.clear()
    train, val = bring_to_device(train, val, placement.device)
    model_record = {"name": config.model, "options": options["options"]}
    described = {**placement.describe(), "compile": loss.is_compiled}
    choice.folder.write_config({
        "schema": SCHEMA, "model": model_record, "options": options, "placement": described, **data_record,
        "versions": versions(), "hardware": hardware(),
        "began": recorded["began"] if recorded else time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    })  # fmt: skip
    yield Started(choice.folder, config.model, sum(p.numel() for p in model.parameters()), len(train), len(val),
                  config.epochs, state.clock.epoch, state.clock.batch, batches, described)  # fmt: skip
    header = {"model": config.model, "options": options["options"], "image_size": config.image_size, "fit": config.fit}
    return Session(
        config, choice.folder, state, loss, train, val, placement, place(config.device, "auto"), should_stop, Meter(),
        FiniteWatch(state), batches, header,
    )  # fmt: skip


def _step_loss(
    config: TrainConfig,
    state: TrainState,
    placement: Placement,
    recorded: Mapping[str, Any] | None,
    batches: int,
    should_stop: StopRequest,
) -> Generator[TrainReport, None, StepLoss]:
    """Compile the step if asked to, or if that pays; a run taken up again keeps to what it began with."""
    loss = StepLoss(state.model)
    if not _should_compile(config, state, placement.device, recorded, batches):
        return loss
    gain = "" if config.compile == "on" else " and saves more over this run"
    yield Notice(f"compiling the training step, which takes up to a minute{gain}")
    failure = loss.compile(placement, config.batch_size, config.image_size)
    if should_stop():  # a terminal's Ctrl-C reaches the compiler too, whose failure then says nothing
        raise Stopped
    if failure and config.compile == "on":
        raise DeviceError(f"--compile on: {failure}; use --compile off")
    if failure:
        yield Notice(f"training without a compiled step, since {failure}")
    return loss


def _should_compile(
    config: TrainConfig, state: TrainState, device: torch.device, recorded: Mapping[str, Any] | None, batches: int
) -> bool:
    if config.compile != "auto":
        return config.compile == "on"
    same = recorded and recorded["options"]["epochs"] == config.epochs
    if recorded and same and recorded["placement"]["device"] == str(device):
        return bool(recorded["placement"]["compile"])
    flops = 3 * forward_flops(state.model, config.image_size) * config.batch_size  # backward takes twice forward
    return pays(device, (config.epochs - state.clock.epoch) * batches, flops)


def _finished(folder: RunFolder, document: Mapping[str, Any], epochs: int) -> Finished | None:
    """The report on a run that has nothing left to do, or None."""
    done, stopped_early, best = document["epoch"], document["stopped_early"], document["best"]
    if done < epochs and not stopped_early:
        return None
    return Finished(folder, done, best["epoch"], best["metrics"], stopped_early, was_finished=True)


def _require_batch_statistics(model: nn.Module, config: TrainConfig, images: int) -> None:
    """Refuse a batch of one image whose deepest maps are single pixels: there is nothing to take a variance over."""
    has_batch_norm = any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    is_single_pixel = config.image_size == registry.load(config.model).size_multiple
    last = images % config.batch_size or config.batch_size
    if last == 1 and is_single_pixel and has_batch_norm:
        raise ConfigError(
            f"--batch-size {config.batch_size}: the last batch of {images} images would be one image, too few for "
            f"batch normalisation at --image-size {config.image_size}; change either by a step"
        )


def _tell_changes(
    recorded: Mapping[str, Any], data_record: Mapping[str, Any]
) -> Generator[TrainReport, None, list[str]]:
    """Say which sources are not what they were when the run began, and return their options' names."""
    changed = []
    for key in ("data", "val_data"):
        then, now = recorded.get(key) or {}, data_record[key] or {}
        if then.get("fingerprint") != now.get("fingerprint"):
            changed.append(key)
            yield Notice(f"the images of {now['source']} are not the ones that this run began with "
                         f"({then['images']} then, {now['images']} now)")  # fmt: skip
    return changed


def _restore(state: TrainState, tensors: dict[str, torch.Tensor], document: dict[str, Any], path: Path) -> None:
    try:
        state.restore(tensors, document)
    except ValueError as error:
        raise CheckpointError(f"{path} does not fit this model: {error}; --restart begins the run again") from error
