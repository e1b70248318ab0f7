"""`train --dry-run`: which run training would begin or resume, and what it would cost. Nothing is written."""

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from aecli.configs import TrainConfig
from aecli.configs.checks import RANDOM_CROP
from aecli.errors import ConfigError
from aecli.models.base import Autoencoder, Kept, Prediction, kept, latent_shape
from aecli.models.flops import TRAINING_FACTOR, forward_flops
from aecli.progress import Listener, Progress, never
from aecli.runs.checkpoints import read_document
from aecli.runs.folder import RunFolder
from aecli.runtime.distributed import Distributed
from aecli.storage.strict_json import is_count
from aecli.training.checks import validate_batch_statistics
from aecli.training.compiling import StepModel
from aecli.training.inputs.image_sets import ImageSet, count_images, list_sources
from aecli.training.inputs.loaders import DatasetLoader
from aecli.training.loop import backend_errors_translated
from aecli.training.plan import Plan, resolve, with_classes
from aecli.training.run_choice import Listings, choose_run, is_occupied, is_refused, progress
from aecli.training.starting_weights import load_starting_weights
from aecli.training.state import TrainState
from aecli.training.step import train_step
from aecli.training.sync import NonFiniteDetector
from aecli.training.validation import ValidationMetrics, validate

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
    kept: Kept | None  # None for a prior
    forward_gflop: float  # an image
    step_gflop: float
    train_images: int | None
    val_images: int | None
    augmentation: str  # of training images, in words
    batches_per_epoch: int
    steps: int
    steps_done: int
    memory: Memory
    timed_steps: int
    seconds_per_step: float
    adversarial_seconds_per_step: float | None  # once the adversarial loss has begun, if it will
    validation_seconds: float  # an epoch
    seconds: float  # for the steps that are left

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        kept = self.kept.to_json() if self.kept else None
        return {**asdict(self), "kept": kept, "memory": {**asdict(self.memory), "total": self.memory.total}}


@dataclass(frozen=True)
class _Length:
    """Images and steps that training would take; counts of images are None for a stream."""

    train_images: int | None
    val_images: int | None
    batch_size: int  # of a full batch: a small set's only batch is a short one
    batches_per_epoch: int
    steps: int


def estimate(config: TrainConfig, listen: Listener) -> DryRun:
    """Resolve the options, count images and steps, and time a few steps on random images.

    Raises:
        AecliError: one of its kinds, for options, data or a folder that training would refuse as well.
    """
    with Distributed() as distributed:
        if distributed.world_size > 1:
            raise ConfigError("--dry-run: one process does it; start it without torchrun")
        plan = resolve(config, distributed)
        listings = list_sources(config)
        plan = with_classes(plan, listings)
        folder, run_state, steps_done = foresee_run(plan, listings)
        recorded = folder.read_config() if run_state in ("resumes", "finished") else None
        plan = plan.for_images(listings, recorded)
        config = plan.config
        if run_state == "new":
            load_starting_weights(plan)  # fails where they don't fit
        length = _length(plan, listings)
        state = plan.new_state()
        _validate_batches(plan, state, length)
        with backend_errors_translated(config):
            start = config.objective.adversarial_start
            has_critics = bool(state.critics) and length.steps > start
            timing = _time_steps(plan, state, length.batch_size, listen)
            state.counters.step = start
            later = _time_steps(plan, state, length.batch_size, listen) if has_critics else None
            validation_seconds = _time_validation(plan, state, length.val_images or 0)
    forward = forward_flops(state.model, config.data.image_size)
    parameters = list(state.model.parameters())
    size = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    left = max(0, length.steps - steps_done)
    adversarial = min(left, length.steps - start) if later else 0
    training_seconds = (left - adversarial) * timing.seconds + (adversarial * later.seconds if later else 0.0)
    return DryRun(
        run=str(folder.path),
        state=run_state,
        options=plan.options,
        placement=plan.placement.describe(),
        parameters=sum(parameter.numel() for parameter in parameters),
        latent_shape=latent_shape(state.model, config.data.image_size),
        kept=kept(state.model, config.data.image_size),
        forward_gflop=forward / 1e9,
        step_gflop=TRAINING_FACTOR * forward * length.batch_size / 1e9,
        train_images=length.train_images,
        val_images=length.val_images,
        augmentation=config.data.augmentation,
        batches_per_epoch=length.batches_per_epoch,
        steps=length.steps,
        steps_done=steps_done,
        memory=Memory(
            size, size, state.learner.optimizer_bytes(), size if config.optimization.ema else 0, timing.activations
        ),
        timed_steps=timing.steps,
        seconds_per_step=timing.seconds,
        adversarial_seconds_per_step=later.seconds if later else None,
        validation_seconds=validation_seconds,
        seconds=training_seconds + left / length.batches_per_epoch * validation_seconds,
    )


def foresee_run(plan: Plan, listings: Listings) -> tuple[RunFolder, str, int]:
    """Return the folder that training would choose, what it would do there, and the steps done; takes no lock.

    Raises:
        CheckpointError: a run there is damaged.
    """
    config, options = plan.config, plan.options
    if config.run.out is not None:
        folder = RunFolder(config.run.out)
        if not folder.exists():
            return folder, "refused" if is_occupied(folder.path) else "new", 0
        if not config.run.restart and is_refused(config, folder, options, listings):
            return folder, "refused", 0
    else:
        folder = choose_run(config, options, listings, held=None).folder
    if config.run.restart:
        return folder, "new", 0
    epochs, steps = progress(folder)  # 0 where nothing is saved yet
    best = ((read_document(folder.last) if folder.last.exists() else None) or {}).get("best")
    best_epoch = best.get("epoch") if isinstance(best, dict) else None
    if plan.is_complete(epochs, steps, is_count(best_epoch) and config.optimization.stops_early(epochs, best_epoch)):
        return folder, "finished", steps
    return folder, "resumes" if steps else "new", steps


def _length(plan: Plan, listings: Listings) -> _Length:
    optimization = plan.config.optimization
    train_images, val_images = count_images(plan.config, listings)
    if train_images is not None and plan.encoder and plan.config.data.flip:
        train_images *= 2  # the latents of mirror images are examples of their own
    batches = optimization.epoch_steps if train_images is None else -(-train_images // optimization.batch_size)
    return _Length(
        train_images,
        val_images,
        min(optimization.batch_size, train_images or optimization.batch_size),
        batches,
        optimization.total_steps(batches),
    )


def _validate_batches(plan: Plan, state: TrainState, length: _Length) -> None:
    if length.train_images is not None:
        side = plan.config.data.image_size
        listed = ImageSet(np.empty((0, 3, side, side), np.uint8), np.arange(length.train_images))
        loader = DatasetLoader(listed, plan.config, plan.placement, plan.distributed)
        validate_batch_statistics(state.model, plan.config, plan.distributed, loader)


@dataclass(frozen=True)
class _Timing:
    steps: int
    seconds: float  # of the median step
    activations: int  # bytes that a backward pass needed, at most


class _CountedModel(StepModel):
    """Counts the bytes that each forward pass keeps for its backward pass, other than the weights."""

    most_kept = 0

    def __call__(self, images: Tensor, noise: Tensor | None = None) -> Prediction:
        kept: dict[int, int] = {}
        with counting_saved_tensors(kept, self.model):
            prediction = super().__call__(images, noise)
        self.most_kept = max(self.most_kept, sum(kept.values()))
        return prediction


def _time_steps(plan: Plan, state: TrainState, batch_size: int, listen: Listener) -> _Timing:
    shape = (batch_size, *state.model.example_shape(plan.config.data.image_size))
    images = torch.rand(shape, generator=torch.Generator().manual_seed(plan.config.run.seed)) * 2 - 1
    if not state.model.example_dtype.is_floating_point:  # codes, of which all have the first
        images = torch.zeros(shape, dtype=state.model.example_dtype)
    images = images.to(plan.placement.device).contiguous(memory_format=plan.placement.memory_format)
    detector = NonFiniteDetector(state)
    plain, counted = StepModel(state.model), _CountedModel(state.model)
    seconds: list[float] = []
    for step in range(1 + MOST_STEPS):
        listen(Progress("timing steps", step, 1 + MOST_STEPS))
        began = time.monotonic()
        train_step(images, batch_size, state.lr, plan, state, plain if step else counted, detector)
        state.sums.tolist()  # waits for the device
        if step:
            seconds.append(time.monotonic() - began)
        if sum(seconds) > TIMED_SECONDS:
            break
    return _Timing(len(seconds), sorted(seconds)[len(seconds) // 2], counted.most_kept)


def counting_saved_tensors(kept: dict[int, int], model: nn.Module) -> saved_tensors_hooks:
    """Add to `kept` the storages (address -> bytes) that autograd saves inside the block, other than the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    return saved_tensors_hooks(pack, lambda tensor: tensor)


def _time_validation(plan: Plan, state: TrainState, images: int) -> float:
    """Return the seconds that validating on so many images takes, all of its metrics included."""
    if not images:
        return 0.0
    config, placement = plan.config, plan.validation_placement
    if config.data.fit == RANDOM_CROP:
        images = min(images, config.data.val_images)
    batch_size = min(images, config.optimization.batch_size)
    shape = (batch_size, *state.model.example_shape(config.data.image_size))
    has_images = isinstance(state.model, Autoencoder)
    examples = np.zeros(shape, np.uint8) if has_images else torch.zeros(shape, dtype=state.model.example_dtype).numpy()
    batch = ImageSet(examples, np.arange(batch_size))
    metrics = ValidationMetrics.of(state.model, state.objective, config.data, images, placement.device)
    for _ in range(2):  # the first one warms up
        began = time.monotonic()
        validate(state.model, batch, metrics, batch_size, placement, never, plan.distributed)
    return (time.monotonic() - began) / batch_size * images
