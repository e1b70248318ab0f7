"""Objectives and states as training builds them, for tests of what is below the loop."""

from torch import Tensor
from torch.optim import Optimizer

from aecli.configs.train import ObjectiveConfig, OptimizationConfig
from aecli.models.base import Trainable
from aecli.runtime.device import place
from aecli.training.objectives import Losses, Objective
from aecli.training.optim import build_optimizers
from aecli.training.state import TrainState


def losses(model: Trainable, examples: Tensor, noise: Tensor | None = None, **options: object) -> Losses:
    """The losses of a batch, by default the report's; adversarial ones are left out."""
    return Objective(ObjectiveConfig(**options), model).validation_loss(model.predict(examples, noise))


def optimizer(model: Trainable, lr: float) -> Optimizer:
    """The report's."""
    (only,), _ = build_optimizers(model, OptimizationConfig(lr=lr), model.betas)
    return only


def fresh_state(model: Trainable, objective: ObjectiveConfig | None = None, **options: object) -> TrainState:
    """The state of a run before its first step, in float32 on the CPU."""
    made = Objective(objective or ObjectiveConfig(), model)
    return TrainState(model.train(), made, place("cpu", "fp32", training=True), OptimizationConfig(**options))
