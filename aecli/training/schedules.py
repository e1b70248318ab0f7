"""Learning-rate schedules: pure functions of the step and of the finished epochs' rows, so that nothing is saved."""

import math
from collections.abc import Callable, Sequence

import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau

from aecli.configs.train import OptimizationConfig
from aecli.training.optim import NotCompiled
from aecli.training.state_schema import Row

PLATEAU_FACTOR = 0.5

Schedule = Callable[
    [int, Sequence[Row]], float
]  # finished steps, rows of metrics.csv -> learning rate of the next step


def build_schedule(config: OptimizationConfig, plateau_epochs: int, total_steps: int) -> Schedule:
    """Return the schedule that `config` asks for; the run has `total_steps`."""
    if config.schedule == "cosine":
        schedule = cosine(config.lr, config.warmup, total_steps)
    elif config.schedule == "plateau":
        schedule = _Plateau(config.lr, plateau_epochs)
    else:
        schedule = constant(config.lr)
    return warmed_up(schedule, config.warmup)


def constant(lr: float) -> Schedule:
    """The same rate in every step."""
    return lambda step, rows: lr


def cosine(lr: float, warmup: int, total_steps: int) -> Schedule:
    """Fall from `lr` after `warmup` steps to 0 after `total_steps`, in half a cosine (Loshchilov and Hutter 2017)."""
    span = max(1, total_steps - warmup)

    def rate(step: int, rows: Sequence[Row]) -> float:
        return 0.5 * lr * (1 + math.cos(math.pi * min(1.0, max(0, step - warmup) / span)))

    return rate


def warmed_up(schedule: Schedule, warmup: int) -> Schedule:
    """Rise linearly to the schedule's rate within the first `warmup` steps."""

    def rate(step: int, rows: Sequence[Row]) -> float:
        return schedule(step, rows) * min(1.0, (step + 1) / warmup)

    return rate if warmup else schedule


class _SGD(NotCompiled, SGD): ...  # type: ignore[misc]


class _Plateau:
    """Halve the rate when the mean train loss has not fallen for `patience` epochs, as torch's scheduler does.

    Rows seen are remembered, so that a step costs nothing; other rows are gone through from the first.
    """

    def __init__(self, lr: float, patience: int) -> None:
        self._lr, self._patience = lr, patience
        self._seen: list[float] = []
        self._restart()

    def _restart(self) -> None:
        optimizer = _SGD([torch.zeros(())], lr=self._lr)
        self._scheduler = ReduceLROnPlateau(optimizer, mode="min", factor=PLATEAU_FACTOR, patience=self._patience)
        self._seen.clear()

    def __call__(self, step: int, rows: Sequence[Row]) -> float:
        if len(rows) != len(self._seen):
            losses = [float(row["train_loss"] or 0.0) for row in rows]
            if losses[: len(self._seen)] != self._seen:
                self._restart()
            for loss in losses[len(self._seen) :]:
                self._scheduler.step(loss)
                self._seen.append(loss)
        return float(self._scheduler.optimizer.param_groups[0]["lr"])
