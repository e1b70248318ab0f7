"""What a training run would be and cost, found out without beginning it: nothing is written."""

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from aecli.configs import TrainConfig
from aecli.data.sources.registry import list_images, split_indices
from aecli.data.sources.shards import Shards, is_stream
from aecli.errors import ConfigError, DataError
from aecli.models import registry
from aecli.models.base import latent_shape
from aecli.models.flops import forward_flops
from aecli.progress import Listener, Progress
from aecli.runs.checkpoints import read_document
from aecli.runs.folder import RunFolder
from aecli.runtime.device import Placement, oom_as_device_error, place
from aecli.runtime.distributed import Distributed
from aecli.training.checks import require_batch_statistics, require_sense
from aecli.training.compiling import StepLoss
from aecli.training.inputs.image_sets import ImageSet
from aecli.training.inputs.latent_sets import resolve_model
from aecli.training.inputs.loaders import DatasetLoader
from aecli.training.inputs.micro_batches import cut
from aecli.training.run_choice import choose_run, first_difference, is_occupied, progress, resolved_options, shrunk
from aecli.training.setup import is_over
from aecli.training.state import TrainState

TIMED_SECONDS = 5.0  # of steps after the first one, which warms up
MOST_STEPS = 20


@dataclass(frozen=True)
class Memory:
    """Bytes on the device while a step is taken; activations are what one backward pass was seen to keep."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int

    @property
    def total(self) -> int:
        """All of it. Buffers of single operations, and the program itself, come on top."""
        return sum(asdict(self).values())


@dataclass(frozen=True)
class DryRun:
    """What `aecli train` would do: where, with which options, how much arithmetic, memory and time.

    `state` is new, resumes, finished or refused. Seconds are measured on this machine for uncompiled steps on random
    images; reading images and drawing are not in them. Counts of images are None for a stream.
    """

    run: str
    state: str
    options: dict[str, Any]
    placement: dict[str, Any]
    parameters: int
    latent_shape: tuple[int, ...]
    forward_gflop: float  # an image
    step_gflop: float
    train_images: int | None
    val_images: int | None
    batches_per_epoch: int
    steps: int
    steps_done: int
    memory: Memory
    timed_steps: int
    seconds_per_step: float
    validation_seconds: float  # an epoch
    seconds: float  # for the steps that are left

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**asdict(self), "memory": {**asdict(self.memory), "total": self.memory.total}}


def estimate(config: TrainConfig, listen: Listener) -> DryRun:
    """Resolve, count, and take a few steps on random images.

    Raises:
        AecliError: one of its kinds, for options, data or a folder that training would refuse as well.
    """
    with Distributed() as distributed:
        if distributed.world_size > 1:
            raise ConfigError("--dry-run: one process does it; start it without torchrun")
        placement = place(config.run.device, config.run.precision, training=True)
        model_options, encoder = resolve_model(config)
        require_sense(config, distributed, placement)
        options = resolved_options(config, model_options, encoder)
        folder, state, steps_done = foresee_run(config, options)
        train_images, val_images = _count_images(config)
        batch = min(
            config.optimization.batch_size, train_images or config.optimization.batch_size
        )  # a small set's only batch is a short one
        batches = (
            config.optimization.epoch_steps
            if train_images is None
            else -(-train_images // config.optimization.batch_size)
        )
        steps = config.optimization.epochs * batches if config.optimization.steps is None else config.optimization.steps

        torch.manual_seed(config.run.seed)
        model = registry.build(config.model.name, model_options).to(placement.device)
        train_state = TrainState(
            model.to(memory_format=placement.memory_format).train(),
            placement,
            config.optimization.lr,
            config.optimization.ema,
        )
        if train_images is not None:
            listed = ImageSet(
                np.empty((0, 3, config.data.image_size, config.data.image_size), np.uint8), np.arange(train_images)
            )
            require_batch_statistics(model, config, distributed, DatasetLoader(listed, config, placement, distributed))
        forward = forward_flops(model, config.data.image_size)
        less = f"a smaller --batch-size than {config.optimization.batch_size}, --accumulate, or --precision bf16"
        with oom_as_device_error(less):
            taken, seconds, activations = _time_steps(train_state, config, batch, placement, distributed, listen)
            validating = _time_validation(train_state, config, val_images or 0)
    parameters = list(model.parameters())
    size = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    left = max(0, steps - steps_done)
    return DryRun(
        run=str(folder.path),
        state=state,
        options=options,
        placement=placement.describe(),
        parameters=sum(parameter.numel() for parameter in parameters),
        latent_shape=latent_shape(model, config.data.image_size),
        forward_gflop=forward / 1e9,
        step_gflop=3 * forward * batch / 1e9,  # backward takes twice forward
        train_images=train_images,
        val_images=val_images,
        batches_per_epoch=batches,
        steps=steps,
        steps_done=steps_done,
        memory=Memory(size, size, 2 * size, size if config.optimization.ema else 0, activations),
        timed_steps=taken,
        seconds_per_step=seconds,
        validation_seconds=validating,
        seconds=left * seconds + left / batches * validating,
    )


def foresee_run(config: TrainConfig, options: Mapping[str, Any]) -> tuple[RunFolder, str, int]:
    """Return the folder that training would choose, what it would do there, and the steps done: taking no lock.

    Raises:
        CheckpointError: a run there is damaged.
    """
    if config.run.out is not None:
        folder = RunFolder(config.run.out)
        if not folder.exists():
            return folder, "refused" if is_occupied(folder.path) else "new", 0
        refused = first_difference(folder.read_config(), options) or shrunk(config, folder)
        return (folder, "refused", 0) if refused and not config.run.restart else (folder, *_progress(config, folder))
    folder = choose_run(config, options, held=None).folder
    return (folder, *_progress(config, folder))


def _progress(config: TrainConfig, folder: RunFolder) -> tuple[str, int]:
    if config.run.restart:
        return "new", 0
    epochs, steps = progress(folder)  # 0 where nothing is saved yet
    document = (read_document(folder.last) if folder.last.exists() else None) or {}
    if is_over(config, epochs, steps, document.get("stopped_early") is True):
        return "finished", steps
    return "resumes" if steps else "new", steps


def _count_images(config: TrainConfig) -> tuple[int | None, int | None]:
    """Return how many images would train and validate, as listed: some may turn out to be unreadable."""
    val = len(list_images(config.data.val_source)) if config.data.val_source is not None else 0
    if is_stream(config.data.source):
        Shards(config.data.source)  # fails where there are none
        return None, val
    images = list_images(config.data.source)
    if config.data.val_source is not None:
        return len(images), val
    train, held_out = split_indices(images, config.data.val_fraction)
    if not train:
        raise DataError(f"{config.data.source}: no image is left to train on")
    return len(train), len(held_out)


def _time_steps(
    state: TrainState, config: TrainConfig, batch: int, placement: Placement, distributed: Distributed, listen: Listener
) -> tuple[int, float, int]:
    """Return how many steps were timed, the seconds of the median one, and the most bytes that a backward pass kept."""
    shape = (batch, *state.model.example_shape(config.data.image_size))
    images = torch.rand(shape, generator=torch.Generator().manual_seed(config.run.seed)) * 2 - 1
    images = images.to(placement.device).contiguous(memory_format=placement.memory_format)
    loss = StepLoss(state.model)
    seconds: list[float] = []
    kept = 0
    for step in range(1 + MOST_STEPS):
        listen(Progress("timing steps", step, 1 + MOST_STEPS))
        began = time.monotonic()
        for micro in cut(images, batch, step, state.model, config, distributed):
            saved: dict[int, int] = {}
            with _counting(saved, state) if step == 0 else nullcontext():
                with placement.autocast():
                    losses = loss(micro.images, micro.noise)
            kept = max(kept, sum(saved.values()))
            state.scaler.scale(losses.total * micro.share).backward()  # type: ignore[no-untyped-call]
        state.optimizer_step()
        losses.total.item()  # waits for the device
        if step:
            seconds.append(time.monotonic() - began)
        if sum(seconds) > TIMED_SECONDS:
            break
    return len(seconds), sorted(seconds)[len(seconds) // 2], kept


def _counting(saved: dict[int, int], state: TrainState) -> saved_tensors_hooks:
    """Note the storages, each once, that are kept for the backward pass, other than the weights themselves."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in state.model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    return saved_tensors_hooks(pack, lambda tensor: tensor)


def _time_validation(state: TrainState, config: TrainConfig, images: int) -> float:
    """Return the seconds that reconstructing so many images takes, in the precision that validation has."""
    if not images:
        return 0.0
    placement = place(config.run.device, "auto")
    at_once = min(images, config.optimization.batch_size)
    batch = torch.zeros(at_once, *state.model.example_shape(config.data.image_size), device=placement.device)
    batch = batch.contiguous(memory_format=placement.memory_format)
    state.model.eval()
    with torch.inference_mode(), placement.autocast():
        for _ in range(2):  # the first one warms up
            began = time.monotonic()
            float(state.model(batch).sum())  # waits for the device
    state.model.train()
    return (time.monotonic() - began) / at_once * images
