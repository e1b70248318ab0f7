"""All that a run is, saved and restored. It holds no random state: randomness follows from the seed and the step."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.amp import GradScaler

from aecli.models.base import Losses, Trainable
from aecli.runtime.device import Placement
from aecli.training.optim import build_ema, build_optimizer, build_scheduler, matching_layout
from aecli.training.state_schema import (
    Best,
    Counters,
    PlateauState,
    Row,
    StateDocument,
    validate_scaler,
    validate_tensors,
)

_OPTIMIZER_QUANTITIES = ("step", "exp_avg", "exp_avg_sq")
_EMA_PREFIX = "average."  # in last.safetensors


class TrainState:
    """Model, optimiser, scheduler, EMA, counters, loss sums of the current epoch, the best epoch so far and the rows.

    `sums` are the epoch's losses (total, reconstruction, KL) summed over its batches, on the device.
    """

    def __init__(self, model: Trainable, placement: Placement, lr: float, ema: float | None) -> None:
        """Start from a freshly built model that is already on its device."""
        self.model = model
        self.optimizer = build_optimizer(model, lr)
        self.scheduler = build_scheduler(self.optimizer, model.plateau_epochs)
        self.ema = build_ema(model, ema)
        self.scaler = GradScaler(placement.device.type, enabled=placement.precision == "fp16")
        self.counters = Counters()
        self.best = Best()
        self.unsaved_best: dict[str, Tensor] | None = None  # the best weights, until they are on the disk
        self.rows: list[Row] = []
        self.stopped_early = False
        self.stream_positions: list[Any] | None = None  # of a streamed source, one per shard group
        self.has_kl = False  # whether the losses of the last batch had that term
        sums_dtype = torch.float32 if placement.device.type == "mps" else torch.float64
        self.sums = torch.zeros(3, dtype=sums_dtype, device=placement.device)

    @property
    def eval_model(self) -> Trainable:
        """The model that is validated and kept as best: the EMA where there is one."""
        if self.ema is None:
            return self.model
        averaged = self.ema.module
        assert isinstance(averaged, Trainable)
        return averaged

    @property
    def lr(self) -> float:
        """The current learning rate."""
        return float(self.optimizer.param_groups[0]["lr"])

    def add(self, losses: Losses, weight: float) -> None:
        """Add a micro-batch's losses to the epoch's sums, without waiting for the device.

        `weight` is the micro-batch's fraction of the batch.
        """
        self.has_kl = losses.kl is not None
        kl = losses.kl if losses.kl is not None else torch.zeros_like(losses.total)
        self.sums += weight * torch.stack([losses.total, losses.reconstruction, kl]).detach()

    def optimizer_step(self) -> None:
        """Update weights and EMA from the accumulated gradients, and clear these."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update_parameters(self.model)

    def keep_stream_positions(self, gathered: list[dict[str, Any] | None]) -> None:
        """Merge what all ranks report (shard group -> position); each reports None where nothing is streamed."""
        merged = {int(group): position for positions in gathered for group, position in (positions or {}).items()}
        if merged:
            self.stream_positions = [merged[group] for group in sorted(merged)]

    def restart_epoch(self) -> None:
        """Start the current epoch again: its images have changed, and with them their order."""
        self.counters.batch, self.counters.seconds = 0, 0.0
        self.stream_positions = None
        self.sums.zero_()

    def finish_epoch(self, row: Row, loss: float, patience: int | None) -> None:
        """Add the epoch's row, step the scheduler, and keep the weights if `loss` is the lowest so far."""
        train_loss = row["train_loss"]
        assert train_loss is not None  # every row has one
        self.scheduler.step(train_loss)
        self.rows.append(row)
        counters = self.counters
        counters.epoch, counters.batch, counters.seconds = counters.epoch + 1, 0, 0.0
        self.sums.zero_()
        if loss < self.best.loss:
            metrics = {key: value for key, value in row.items() if key.startswith(("train_", "val_"))}
            self.best = Best(loss, counters.epoch, metrics)
            weights = self.eval_model.state_dict()
            self.unsaved_best = {key: value.detach().clone() for key, value in weights.items()}
        self.stopped_early = patience is not None and counters.epoch - self.best.epoch >= patience

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the state, under the names that last.safetensors gives them."""
        found = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        if self.ema is not None:
            found |= {f"{_EMA_PREFIX}{key}": value for key, value in self.ema.state_dict().items()}
        for key, parameter in self.model.named_parameters():
            for quantity, value in self.optimizer.state.get(parameter, {}).items():
                found[f"optimizer.{quantity}.{key}"] = value
        return {**found, "sums": self.sums}

    def document(self) -> dict[str, Any]:
        """Return everything that is not a tensor, as JSON values."""
        plateau = PlateauState(**{key: getattr(self.scheduler, key) for key in PlateauState.__dataclass_fields__})
        return StateDocument(
            self.counters, self.lr, plateau, self.best, self.rows, self.scaler.state_dict(), self.stopped_early,
            self.has_kl, self.stream_positions,
        ).to_document()  # fmt: skip

    def restore(self, tensors: dict[str, Tensor], document: StateDocument) -> None:
        """Become the state that `tensors()` and `document()` were taken of.

        Raises:
            ValueError: they don't fit this state, which is then unchanged.
        """
        self._validate(tensors, document)

        def under(prefix: str) -> dict[str, Tensor]:
            return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

        self.model.load_state_dict(under("model."))
        if self.ema is not None:
            self.ema.load_state_dict(under(_EMA_PREFIX))
        for key, parameter in self.model.named_parameters():
            for quantity in _OPTIMIZER_QUANTITIES:
                name = f"optimizer.{quantity}.{key}"
                if name in tensors:
                    self.optimizer.state[parameter][quantity] = matching_layout(tensors[name], parameter)
        for group in self.optimizer.param_groups:
            group["lr"] = document.lr
        for key, value in vars(document.schedule).items():
            setattr(self.scheduler, key, value)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(document.scaler)
        self.counters, self.best, self.rows = document.counters, document.best, document.rows
        self.stopped_early, self.has_kl = document.stopped_early, document.has_kl
        self.stream_positions = document.stream_positions
        self.sums.copy_(tensors["sums"])

    def _validate(self, tensors: dict[str, Tensor], document: StateDocument) -> None:
        expected = self.tensors()
        for key, parameter in self.model.named_parameters():
            likes = (torch.zeros((), dtype=torch.float32), parameter, parameter)
            named = {f"optimizer.{q}.{key}": like for q, like in zip(_OPTIMIZER_QUANTITIES, likes, strict=True)}
            if named.keys() & tensors.keys():  # a parameter that has had no gradient yet has none of them
                expected |= named
        if "sums" in tensors:  # written on a device with another precision of sums
            expected["sums"] = torch.empty(self.sums.shape, dtype=tensors["sums"].dtype)
        validate_tensors(tensors, expected)
        if document.lr > self.lr:
            raise ValueError(f"its learning rate {document.lr:g} is above the initial {self.lr:g}")
        validate_scaler(document.scaler, self.scaler.state_dict())


def seed_step(seed: int, step: int, *stream: int) -> None:
    """Seed torch's global generator for one step, so that its randomness depends on (seed, step) and `stream` alone."""
    sequence = np.random.SeedSequence([seed, step], spawn_key=stream)
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
