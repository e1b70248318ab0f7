"""A run that is ready to train: all that the loop, checkpoints and observers work with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aecli.configs import TrainConfig
from aecli.progress import StopRequest
from aecli.runs.folder import RunFolder
from aecli.runtime.distributed import Distributed
from aecli.training.compiling import StepModel
from aecli.training.events import ThroughputMeter
from aecli.training.inputs.image_sets import ImageSet
from aecli.training.inputs.loaders import BatchLoader
from aecli.training.plan import Plan
from aecli.training.schedules import Schedule
from aecli.training.state import TrainState
from aecli.training.sync import LossSync
from aecli.training.validation import ValidationMetrics


@dataclass(frozen=True)
class Inputs:
    """Batches to train on, and images (a prior: latents) to validate on."""

    loader: BatchLoader
    val: ImageSet


@dataclass(frozen=True)
class Session:
    """A plan, the folder that it is carried out in, and its state."""

    plan: Plan
    folder: RunFolder
    state: TrainState
    inputs: Inputs
    step_model: StepModel
    schedule: Schedule
    metrics: ValidationMetrics
    sync: LossSync
    throughput: ThroughputMeter
    should_stop: StopRequest
    conversions: Mapping[str, Any]  # source -> what was done to its images, as JSON

    @property
    def config(self) -> TrainConfig:
        """The plan's config."""
        return self.plan.config

    @property
    def distributed(self) -> Distributed:
        """The processes that train together."""
        return self.plan.distributed

    @property
    def batches(self) -> int:
        """Batches of the current epoch: the loader's, or what is left of `--steps`."""
        loader, steps = self.inputs.loader, self.config.optimization.steps
        if steps is None:
            return loader.batches
        counters = self.state.counters
        return min(loader.batches, steps - (counters.step - counters.batch))

    @property
    def images_done(self) -> int:
        """Images of the current epoch's finished batches, over all processes."""
        loader, batch = self.inputs.loader, self.state.counters.batch
        return (batch - 1) * loader.count(0) + loader.count(batch - 1) if batch else 0

    @property
    def epochs(self) -> int:
        """Epochs of the whole run, of which `--steps` may end the last one early."""
        optimization = self.config.optimization
        if optimization.steps is None:
            return optimization.epochs
        return -(-optimization.steps // self.inputs.loader.batches)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to train."""
        counters = self.state.counters
        return counters.batch == 0 and self.plan.is_complete(counters.epoch, counters.step, self.state.stopped_early)
