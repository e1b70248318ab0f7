"""All that a run is, saved and restored. No random state is in it: randomness is derived from the seed and the step."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.amp import GradScaler

from aecli.models.base import Losses, Trainable
from aecli.runtime.device import Placement
from aecli.training.optim import build_average, build_optimizer, build_schedule, matching_layout
from aecli.training.state_schema import SCHEDULE, require_fit, require_scaling, require_sense

_OPTIMIZER_QUANTITIES = ("step", "exp_avg", "exp_avg_sq")


@dataclass
class Counters:
    """How far a run is; the only clock that data order and randomness follow."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps
    batch: int = 0  # finished batches of the epoch under way
    seconds: float = 0.0  # time spent so far in the epoch under way


@dataclass
class Best:
    """The best epoch so far, by validation loss (by train loss without validation images)."""

    loss: float = math.inf
    epoch: int = 0
    metrics: dict[str, float | None] = field(default_factory=dict)


class TrainState:
    """Model, optimiser, schedule, weight average, clock, sums of the epoch under way, the best so far and the rows."""

    def __init__(self, model: Trainable, placement: Placement, lr: float, ema: float | None) -> None:
        """Start from a freshly built model that is already on its device."""
        self.model = model
        self.optimizer = build_optimizer(model, lr)
        self.schedule = build_schedule(self.optimizer, model.plateau_epochs)
        self.average = build_average(model, ema)
        self.scaler = GradScaler(placement.device.type, enabled=placement.precision == "fp16")
        self.clock = Counters()
        self.best = Best()
        self.unsaved_best: dict[str, Tensor] | None = None  # the best weights, until they are on the disk
        self.rows: list[dict[str, float | None]] = []
        self.stopped_early = False
        self.stream_positions: list[Any] | None = None  # of a streamed source, one per shard group
        self.has_kl = False  # whether the model's losses have that term, as its last batch told
        sums_dtype = torch.float32 if placement.device.type == "mps" else torch.float64
        self.sums = torch.zeros(3, dtype=sums_dtype, device=placement.device)

    @property
    def eval_model(self) -> Trainable:
        """The weights that count: the average where there is one."""
        if self.average is None:
            return self.model
        averaged = self.average.module
        assert isinstance(averaged, Trainable)
        return averaged

    @property
    def lr(self) -> float:
        """The learning rate in force."""
        return float(self.optimizer.param_groups[0]["lr"])

    def add(self, losses: Losses, share: float) -> None:
        """Add the losses of that share of a batch to the epoch's sums, without waiting for the device."""
        self.has_kl = losses.kl is not None
        kl = losses.kl if losses.kl is not None else torch.zeros_like(losses.total)
        self.sums += share * torch.stack([losses.total, losses.reconstruction, kl]).detach()

    def keep_stream_positions(self, gathered: list[dict[str, Any] | None]) -> None:
        """Merge what all ranks report (shard group -> position); each reports None where nothing is streamed."""
        merged = {int(group): position for positions in gathered for group, position in (positions or {}).items()}
        if merged:
            self.stream_positions = [merged[group] for group in sorted(merged)]

    def restart_epoch(self) -> None:
        """Forget how far the epoch under way is: its images have changed, and with them its order."""
        self.clock.batch, self.clock.seconds = 0, 0.0
        self.stream_positions = None
        self.sums.zero_()

    def keep_if_best(self, loss: float, metrics: dict[str, float | None]) -> None:
        """Take a copy of the weights that count if `loss` is the lowest yet."""
        if loss < self.best.loss:
            self.best = Best(loss, self.clock.epoch, metrics)
            weights = self.eval_model.state_dict()
            self.unsaved_best = {key: value.detach().clone() for key, value in weights.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor, under names that tell what it is."""
        found = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        if self.average is not None:
            found |= {f"average.{key}": value for key, value in self.average.state_dict().items()}
        for key, parameter in self.model.named_parameters():
            for quantity, value in self.optimizer.state.get(parameter, {}).items():
                found[f"optimizer.{quantity}.{key}"] = value
        return {**found, "sums": self.sums}

    def document(self) -> dict[str, Any]:
        """Everything that is not a tensor, as JSON values."""
        schedule = {key: getattr(self.schedule, key) for key in SCHEDULE}
        return {
            "epoch": self.clock.epoch,
            "clock": vars(self.clock),
            "lr": self.lr,
            "schedule": {**schedule, "best": _finite(schedule["best"])},
            "scaler": self.scaler.state_dict(),
            "best": {**vars(self.best), "loss": _finite(self.best.loss)},
            "stopped_early": self.stopped_early,
            "has_kl": self.has_kl,
            "cursors": self.stream_positions,
            "rows": self.rows,
        }

    def restore(self, tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
        """Become the state that `tensors()` and `document()` told of.

        Raises:
            ValueError: they make no sense, or don't fit this state, which is then as it was.
        """
        require_sense(document)
        self._require_fit(tensors, document)

        def under(prefix: str) -> dict[str, Tensor]:
            return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

        self.model.load_state_dict(under("model."))
        if self.average is not None:
            self.average.load_state_dict(under("average."))
        for key, parameter in self.model.named_parameters():
            for quantity in _OPTIMIZER_QUANTITIES:
                name = f"optimizer.{quantity}.{key}"
                if name in tensors:
                    self.optimizer.state[parameter][quantity] = matching_layout(tensors[name], parameter)
        for group in self.optimizer.param_groups:
            group["lr"] = document["lr"]
        for key in SCHEDULE:
            value = document["schedule"][key]
            setattr(self.schedule, key, math.inf if value is None else value)
        if document["scaler"]:
            self.scaler.load_state_dict(document["scaler"])
        self.clock = Counters(**document["clock"])
        self.best = Best(**{**document["best"], "loss": _infinite(document["best"]["loss"])})
        self.stopped_early = document["stopped_early"]
        self.has_kl = document["has_kl"]
        self.stream_positions = document.get("cursors")
        self.rows = document["rows"]
        self.sums.copy_(tensors["sums"])

    def _require_fit(self, tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
        expected = self.tensors()
        for key, parameter in self.model.named_parameters():
            likes = (torch.zeros((), dtype=torch.float32), parameter, parameter)
            named = {f"optimizer.{q}.{key}": like for q, like in zip(_OPTIMIZER_QUANTITIES, likes, strict=True)}
            if named.keys() & tensors.keys():  # a parameter that has had no gradient yet has none of them
                expected |= named
        if "sums" in tensors:  # in the precision that the device at the time had
            expected["sums"] = torch.empty(self.sums.shape, dtype=tensors["sums"].dtype)
        require_fit(tensors, expected)
        if document["lr"] > self.lr:
            raise ValueError(f"its learning rate {document['lr']:g} is above {self.lr:g}, from which it can only fall")
        require_scaling(document["scaler"], self.scaler.state_dict())


def seed_step(seed: int, step: int, *stream: int) -> None:
    """Seed torch's global generator for one step, so that its randomness depends on (seed, step) and `stream` alone."""
    sequence = np.random.SeedSequence([seed, step], spawn_key=stream)
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _infinite(value: float | None) -> float:
    return math.inf if value is None else value
