"""The rare work before the first step: the run, the images, the machine, the model new or taken up again."""

import hashlib
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from aecli import checkpoints
from aecli.configs import TrainConfig
from aecli.data.pack import Pack, pack_images
from aecli.data.sources import ImageRef, list_images, split_indices
from aecli.errors import CheckpointError, ConfigError, DataError
from aecli.models import registry
from aecli.models.base import Losses
from aecli.progress import Notice
from aecli.runs import RunFolder
from aecli.runtime.device import Placement, hardware, make_deterministic, place, should_compile, versions
from aecli.training.reports import Finished, Started, TrainReport
from aecli.training.run_choice import choose_run, resolved_options
from aecli.training.state import TrainState

StopRequest = Callable[[], bool]
SPLIT_RULE = "validation where sha256(name), read as a fraction, is below val_fraction"


class Stopped(Exception):  # noqa: N818 (no error: the caller asked for it)
    """The caller asked to stop."""


@dataclass(frozen=True)
class ImageSet:
    """Decoded images uint8 (N, 3, S, S), and the rows of them that count."""

    images: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Session:
    """Everything that the loop works with."""

    config: TrainConfig
    folder: RunFolder
    state: TrainState
    compute_loss: Callable[[torch.Tensor], Losses]
    train: ImageSet
    val: ImageSet
    placement: Placement
    validation_placement: Placement
    should_stop: StopRequest
    batches: int  # an epoch; the last may be short
    header: dict[str, Any]  # what model.safetensors says of itself, but for the epoch

    @property
    def is_done(self) -> bool:
        """Whether no epoch is left."""
        return self.state.clock.epoch >= self.config.epochs or self.state.stopped_early


def prepare(config: TrainConfig, should_stop: StopRequest) -> Generator[TrainReport, None, Session | None]:
    """Report what is found on the way, and return the session, or None where the run is finished already.

    Raises:
        AecliError: as `train`.
        Stopped: `should_stop` said so before there was anything to save.
    """
    placement = place(config.device, config.precision, training=True)
    if config.deterministic:
        make_deterministic()
    model_options = registry.resolve_options(config.model, config.options, config.model_defaults)
    multiple = registry.load(config.model).size_multiple
    if config.image_size % multiple:
        raise ConfigError(f"--image-size {config.image_size}: model {config.model!r} needs a multiple of {multiple}")
    options = resolved_options(config, model_options)
    choice = choose_run(config, options)
    saved = checkpoints.load(choice.folder.last) if choice.resumes else None
    if saved and (finished := _finished(choice.folder, saved[1], config.epochs)):
        yield finished
        return None

    train, val, data_record = yield from _gather_images(config, should_stop)
    if choice.notice:
        yield Notice(choice.notice)
    recorded = choice.folder.read_config() if choice.resumes else None
    changed = [key for key in ("data", "val_data") if recorded and _differs(recorded.get(key), data_record[key])]
    for key in changed:
        now, then = data_record[key], (recorded or {})[key]
        yield Notice(f"the images of {now['source']} are not the ones that this run began with "
                     f"({then['images']} then, {now['images']} now)")  # fmt: skip

    torch.manual_seed(config.seed)
    model = registry.build(config.model, model_options).to(placement.device).to(memory_format=placement.memory_format)
    _require_batch_statistics(model, config, len(train))
    state = TrainState(model.train(), placement, config.lr, config.ema)
    batches = -(-len(train) // config.batch_size)
    compiles = should_compile(config.compile, placement.device, steps=config.epochs * batches)
    if saved and recorded:
        _restore(state, *saved, path=choice.folder.last)
        if "data" in changed:
            state.restart_epoch()
        if config.compile == "auto" and recorded["placement"]["device"] == str(placement.device):
            compiles = recorded["placement"]["compile"]
    elif choice.folder.exists():
        choice.folder.clear()

    model_record = {"name": config.model, "options": options["options"]}
    described = {**placement.describe(), "compile": compiles}
    choice.folder.write_config({
        "schema": checkpoints.SCHEMA, "model": model_record, "options": options, "placement": described, **data_record,
        "versions": versions(), "hardware": hardware(),
        "began": recorded["began"] if recorded else time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    })  # fmt: skip
    yield Started(choice.folder, config.model, sum(p.numel() for p in model.parameters()), len(train), len(val),
                  config.epochs, state.clock.epoch, state.clock.batch, batches, described)  # fmt: skip
    header = {"model": config.model, "options": options["options"], "image_size": config.image_size, "fit": config.fit}
    return Session(
        config, choice.folder, state, torch.compile(model.loss) if compiles else model.loss, train, val, placement,
        place(config.device, "auto"), should_stop, batches, header,
    )  # fmt: skip


def _finished(folder: RunFolder, document: Mapping[str, Any], epochs: int) -> Finished | None:
    """The report on a run that has nothing left to do, or None."""
    try:
        done, stopped_early, best = document["epoch"], document["stopped_early"], document["best"]
        if done < epochs and not stopped_early:
            return None
        return Finished(folder, done, best["epoch"], best["metrics"], stopped_early, was_finished=True)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder.last} is damaged: it has no {error}; --restart begins the run again") from error


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


def _differs(recorded: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> bool:
    return (recorded or {}).get("fingerprint") != (now or {}).get("fingerprint")


def _restore(state: TrainState, tensors: dict[str, torch.Tensor], document: dict[str, Any], path: Path) -> None:
    try:
        state.restore(tensors, document)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not fit this model: {error}; --restart begins the run again") from error


def _gather_images(
    config: TrainConfig, should_stop: StopRequest
) -> Generator[TrainReport, None, tuple[ImageSet, ImageSet, dict[str, Any]]]:
    """List, split and decode; return training images, validation images and what config.json says of them."""
    listed = list_images(config.data)
    pack = yield from _decode_once(config, listed, should_stop)
    kept = [image for image in listed if image.name not in pack.skipped]
    record: dict[str, Any] = {"data": _record(config.data, listed, pack), "val_data": None}
    if config.val_data is None:
        train_rows, val_rows = split_indices(kept, config.val_fraction)
        train, val = ImageSet(pack.images, np.array(train_rows)), ImageSet(pack.images, np.array(val_rows, dtype=int))
        record["split"] = {
            "train": len(train),
            "val": len(val),
            "rule": SPLIT_RULE,
            "val_fraction": config.val_fraction,
        }
    else:
        val_listed = list_images(config.val_data)
        val_pack = yield from _decode_once(config, val_listed, should_stop)
        train, val = (ImageSet(each.images, np.arange(len(each.names))) for each in (pack, val_pack))
        record["val_data"] = _record(config.val_data, val_listed, val_pack)
        record["split"] = {"train": len(train), "val": len(val), "rule": "all of data, all of val_data"}
    if len(train) == 0:
        raise DataError(f"{config.data}: no image is left to train on")
    return train, val, record


def _decode_once(
    config: TrainConfig, listed: Sequence[ImageRef], should_stop: StopRequest
) -> Generator[TrainReport, None, Pack]:
    packing = pack_images(listed, config.image_size, config.fit, config.cache, config.workers)
    while True:
        try:
            progress = next(packing)
        except StopIteration as finished:
            pack: Pack = finished.value
            break
        if should_stop():
            packing.close()
            raise Stopped
        yield progress
    if pack.skipped:
        named = "; ".join(f"{name}: {reason}" for name, reason in list(pack.skipped.items())[:5])
        more = f"; and {len(pack.skipped) - 5} more" if len(pack.skipped) > 5 else ""
        yield Notice(f"skipped {len(pack.skipped)} of {len(listed)} images that can't be read: {named}{more}")
    return pack


def _record(source: str, listed: Sequence[ImageRef], pack: Pack) -> dict[str, Any]:
    """What config.json says of a source. Its fingerprint takes names and sizes: a copy of a folder is the same data."""
    digest = hashlib.sha256()
    for image in listed:
        digest.update(f"{image.name}\0{image.fingerprint.partition(':')[0]}\n".encode(errors="surrogateescape"))
    return {
        "source": source,
        "images": len(pack.names),
        "skipped": sorted(pack.skipped),
        "fingerprint": digest.hexdigest(),
    }
