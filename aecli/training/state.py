"""All that a run is, saved and restored. It holds no random state: randomness follows from the seed and the step."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.amp import GradScaler

from aecli.configs.train import OptimizationConfig
from aecli.models.base import Autoencoder, Trainable
from aecli.runtime.device import Placement, seed_devices
from aecli.runtime.distributed import Distributed
from aecli.training.learner import Learner
from aecli.training.objectives import Objective
from aecli.training.optim import build_critic_optimizer, build_ema, build_optimizers
from aecli.training.state_schema import Best, Counters, Row, StateDocument, validate_scaler, validate_tensors

_EMA_PREFIX = "average."  # in last.safetensors


class TrainState:
    """Model, optimizers, critics, EMA, counters, loss sums of the current epoch, the best epoch so far and the rows.

    `sums` are the epoch's total loss, and then the losses and statistics `names`, summed over its batches on the
    device.
    """

    def __init__(
        self, model: Trainable, objective: Objective, placement: Placement, config: OptimizationConfig
    ) -> None:
        """Start from a freshly built model and objective that are already on their device."""
        self.model, self.objective = model, objective
        device = placement.device
        scaler = GradScaler(device.type, enabled=placement.precision == "fp16")
        optimizers, matrices = build_optimizers(model, config, model.betas)
        self.learner = Learner(model, optimizers, scaler, matrices, config.clip_norm)
        unscaled = GradScaler(device.type, enabled=False)  # critics compute in float32
        self.critics = {
            name: Learner(critic, [build_critic_optimizer(critic, config.lr)], unscaled, prefix=f"critic.{name}.")
            for name, critic in objective.critics.items()
        }
        self.ema = build_ema(model, config.ema)
        self.counters = Counters()
        self.best = Best()
        self.unsaved_best: dict[str, Tensor] | None = None  # the best weights, until they are on the disk
        self.rows: list[Row] = []
        self.stopped_early = False
        self.stream_positions: list[Any] | None = None  # of a streamed source, one per shard group
        self.lr = config.lr  # of the last step
        self.names = (*objective.loss_names, *model.stat_names)
        sums_dtype = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(1 + len(self.names), dtype=sums_dtype, device=device)

    @property
    def eval_model(self) -> Trainable:
        """The model that is validated and kept as best: the EMA where there is one."""
        if self.ema is None:
            return self.model
        averaged = self.ema.module
        assert isinstance(averaged, Trainable)
        return averaged

    def add(self, total: Tensor | None, parts: Mapping[str, Tensor], weight: float) -> None:
        """Add a micro-batch's losses and statistics to the epoch's sums, without waiting for the device.

        `weight` is the micro-batch's fraction of the batch; a critic's losses have no total.
        """
        zero = torch.zeros((), device=self.sums.device)
        values = [zero if total is None else total, *(parts.get(name, zero) for name in self.names)]
        self.sums += weight * torch.stack([value.detach() for value in values])

    def prepare(self, batches: Iterable[Tensor], distributed: Distributed) -> None:
        """Let the model be fitted to images before the first step, on the main process, and all take its weights."""
        assert isinstance(self.model, Autoencoder)  # for the type checker: priors are fitted as their latents are read
        if distributed.is_main_process:
            self.model.prepare(batches)
        distributed.broadcast_tensors([*self.model.parameters(), *self.model.buffers()])
        if self.ema is not None:
            self.ema.module.load_state_dict(self.model.state_dict())

    def update_ema(self) -> None:
        """Move the average towards the weights."""
        if self.ema is not None:
            self.ema.update_parameters(self.model)

    def means(self, sums: list[float]) -> dict[str, float | None]:
        """Return the epoch's means by name, `loss` first; None for losses that have not begun."""
        counters = self.counters
        found: dict[str, float | None] = {"loss": sums[0] / counters.batch}
        for name, value in zip(self.names, sums[1:], strict=True):
            batches = min(counters.batch, counters.step - self.objective.starts_at(name))
            found[name] = value / batches if batches > 0 else None
        return found

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

    @property
    def begins_adversarial_phase(self) -> bool:
        """Whether the adversarial loss began in this epoch: what comes before it is another kind of best."""
        start, counters = self.objective.config.adversarial_start, self.counters
        return bool(self.critics) and counters.step - counters.batch <= start < counters.step

    def finish_epoch(self, row: Row, config: OptimizationConfig) -> None:
        """Add the epoch's row, and keep the weights if it is the best so far, by what `best_by` names.

        That is the validation loss, PSNR or LPIPS; the train loss where nothing is validated.
        """
        begins_phase = self.begins_adversarial_phase
        self.rows.append(row)
        counters = self.counters
        counters.epoch, counters.batch, counters.seconds = counters.epoch + 1, 0, 0.0
        self.sums.zero_()
        loss = criterion(row, config.best_by)
        if loss < self.best.loss or begins_phase:
            metrics = {key: value for key, value in row.items() if key.startswith(("train_", "val_"))}
            self.best = Best(loss, counters.epoch, metrics)
            weights = self.eval_model.state_dict()
            self.unsaved_best = {key: value.detach().clone() for key, value in weights.items()}
        self.stopped_early = config.stops_early(counters.epoch, self.best.epoch)

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the state, under the names that last.safetensors gives them."""
        found = self.learner.tensors()
        if self.ema is not None:
            found |= {f"{_EMA_PREFIX}{key}": value for key, value in self.ema.state_dict().items()}
        for critic in self.critics.values():
            found |= critic.tensors()
        return {**found, "sums": self.sums}

    def document(self) -> dict[str, Any]:
        """Return everything that is not a tensor, as JSON values."""
        return StateDocument(
            self.counters, self.best, self.rows, self.lr, self.learner.scaler.state_dict(), self.stopped_early,
            list(self.names), self.stream_positions,
        ).to_document()  # fmt: skip

    def restore(self, tensors: dict[str, Tensor], document: StateDocument) -> None:
        """Become the state that `tensors()` and `document()` were taken of.

        Raises:
            ValueError: they don't fit this state, which is then unchanged.
        """
        self._validate(tensors, document)
        self.learner.restore(tensors, document.scaler)
        for critic in self.critics.values():
            critic.restore(tensors, {})
        if self.ema is not None:
            self.ema.load_state_dict({
                key.removeprefix(_EMA_PREFIX): value for key, value in tensors.items() if key.startswith(_EMA_PREFIX)
            })  # fmt: skip
        self.counters, self.best, self.rows = document.counters, document.best, document.rows
        self.stopped_early, self.stream_positions, self.lr = (
            document.stopped_early, document.stream_positions, document.lr,
        )  # fmt: skip
        saved = dict(zip(("loss", *document.names), tensors["sums"].tolist(), strict=True))
        restored = [saved.get(name, 0.0) for name in ("loss", *self.names)]
        self.sums.copy_(torch.tensor(restored, dtype=self.sums.dtype))

    def _validate(self, tensors: dict[str, Tensor], document: StateDocument) -> None:
        expected = self.tensors()
        for learner in (self.learner, *self.critics.values()):
            for group in learner.optional_tensors():
                if group.keys() & tensors.keys():
                    expected |= group
        if "sums" in tensors:  # written on a device with another precision of sums
            expected["sums"] = torch.empty(1 + len(document.names), dtype=tensors["sums"].dtype)
        validate_tensors(tensors, expected)
        validate_scaler(document.scaler, self.learner.scaler.state_dict())


def criterion(row: Row, best_by: str) -> float:
    """Return what is the lowest in the best epoch: a loss, or a validation metric with the sign that makes it so."""
    value = row[f"val_{best_by}"] if row["val_loss"] is not None else row["train_loss"]
    assert value is not None  # every row has a train loss, and validation has been checked to have the metric
    return -value if best_by == "psnr" and row["val_loss"] is not None else value


def seed_step(seed: int, step: int, *stream: int) -> None:
    """Seed torch's global generator for one step, so that its randomness depends on (seed, step) and `stream` alone."""
    sequence = np.random.SeedSequence([seed, step], spawn_key=stream)
    seed_devices(int(sequence.generate_state(1, np.uint64)[0]))
