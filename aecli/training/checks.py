"""What keeps a run from being trained as asked, found before the first step."""

import json
from collections.abc import Generator, Mapping
from typing import Any

from torch import nn

from aecli.configs import TrainConfig
from aecli.data.streams import is_stream
from aecli.errors import CheckpointError, ConfigError, DataError, DeviceError
from aecli.models import registry
from aecli.progress import Notice
from aecli.runs.folder import RunFolder
from aecli.runtime.device import Placement
from aecli.runtime.distributed import Distributed
from aecli.training.inputs.loaders import BatchLoader
from aecli.training.inputs.micro_batches import smallest_micro_batch
from aecli.training.state import TrainState
from aecli.training.state_schema import StateDocument


def require_sense(config: TrainConfig, distributed: Distributed, placement: Placement) -> None:
    """Refuse options that don't go together, or not with this model or as many processes."""
    multiple = registry.load(config.model.name).size_multiple
    if config.data.image_size % multiple:
        raise ConfigError(
            f"--image-size {config.data.image_size}: model {config.model.name!r} needs a multiple of {multiple}"
        )
    if config.optimization.steps is None and is_stream(config.data.source):
        raise ConfigError(f"--steps: {config.data.source} is a stream, which has no end; say how many steps to train")
    if config.optimization.batch_size < distributed.world_size:
        raise ConfigError(
            f"--batch-size {config.optimization.batch_size}: fewer images than the {distributed.world_size} processes\n"
            "hint: it counts the images of all processes together"
        )
    if config.optimization.sync_batchnorm == "on" and placement.device.type != "cuda":
        raise ConfigError(f"--sync-batchnorm on: PyTorch has it for CUDA, not for {placement.device.type}; use auto")
    if distributed.world_size > 1 and placement.device.type == "mps":
        raise DeviceError("--device mps: several processes can't share one; use --device cpu")


def require_same(distributed: Distributed, folder: RunFolder, state: StateDocument) -> None:
    """Refuse to train where processes read different states of the run: then their folders are on different disks."""
    states = distributed.all_gather_object([vars(state.counters), state.rows[-1:]])
    if len({json.dumps(each) for each in states}) > 1:
        raise CheckpointError(f"{folder.last} is not the same on all machines\nhint: runs must lie on a shared disk")


def require_same_images(distributed: Distributed, record: Mapping[str, Any]) -> None:
    """Refuse to train where processes found different images."""
    for key in ("data", "val_data"):
        seen = [(each or {}).get("fingerprint") for each in distributed.all_gather_object(record[key])]
        counts = [(each or {}).get("images") for each in distributed.all_gather_object(record[key])]
        if len(set(zip(seen, counts, strict=True))) > 1:
            raise DataError(f"the images of {record[key]['source']} are not the same on all machines (process 0 has "
                            f"{counts[0]}, others {sorted(set(map(str, counts[1:])))})")  # fmt: skip


def require_batch_statistics(
    model: nn.Module, config: TrainConfig, distributed: Distributed, loader: BatchLoader
) -> None:
    """Refuse a batch of one image whose deepest maps are single pixels: there is nothing to take a variance over."""
    has_batch_norm = any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    is_single_pixel = config.data.image_size == registry.load(config.model.name).size_multiple
    for batch in (0, loader.batches - 1):
        count = loader.count(batch)
        if smallest_micro_batch(count, config, distributed.world_size) == 1 and is_single_pixel and has_batch_norm:
            what = (
                f"the last batch of {loader.images} images would be one image"
                if count == 1
                else f"a batch of {count} would be taken one image at a time"
            )
            raise ConfigError(
                f"--batch-size {config.optimization.batch_size}: {what}, too few for batch normalisation at "
                f"--image-size {config.data.image_size}; change either by a step"
            )


def require_whole_epochs(
    config: TrainConfig, recorded: Mapping[str, Any] | None, state: TrainState, loader: BatchLoader
) -> None:
    """Refuse to go on after steps that ended within an epoch: without that end, the run would have been another."""
    then = recorded["options"].get("steps") if recorded else None
    if then is not None and then != config.optimization.steps and state.counters.step >= then and then % loader.batches:
        raise CheckpointError(
            f"--steps {config.optimization.steps}: the run ended after {then} steps, within an epoch of "
            f"{loader.batches}; it can only grow from the end of an epoch; begin another with --out"
        )


def tell_changes(recorded: Mapping[str, Any], data_record: Mapping[str, Any]) -> Generator[Notice, None, list[str]]:
    """Say which sources are not what they were when the run began, and return their options' names."""
    changed = []
    for key in ("data", "val_data"):
        then, now = recorded.get(key) or {}, data_record[key] or {}
        if then.get("fingerprint") != now.get("fingerprint"):
            changed.append(key)
            yield Notice(f"the images of {now['source']} are not the ones that this run began with "
                         f"({_amount(then)} then, {_amount(now)} now)")  # fmt: skip
    return changed


def _amount(record: Mapping[str, Any]) -> str:
    return f"{record['shards']} shards" if record.get("images") is None else str(record["images"])


def require_log(kind: str | None) -> None:
    """Find out, before the work, that what `--log` asks for is installed.

    Raises:
        ConfigError: it is not; the message names the extra that brings it.
    """
    if kind is None:
        return
    try:
        import torch.utils.tensorboard.writer  # noqa: F401
    except ImportError as error:
        raise ConfigError(f'--log {kind} needs one more package: pip install "aecli[{kind}]"') from error
