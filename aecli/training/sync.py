"""What processes that train one model tell each other now and then; alone, when the device is waited for."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from aecli.progress import StopRequest
from aecli.runtime.distributed import Distributed
from aecli.training.state import TrainState

SYNC_INTERVAL_SECONDS = 0.25  # reading the loss waits for the device, so not every step does
_MOST_STEPS = 10_000


class NonFiniteDetector:
    """Looks at every step and notes, on the device, the first whose loss or gradient is no finite number."""

    def __init__(self, state: TrainState) -> None:
        """Watch the steps of `state` from here on."""
        self._state = state
        self._first = torch.zeros(2, dtype=torch.int64, device=state.sums.device)

    def update(self, loss: Tensor) -> None:
        """Look at a step's loss and at the gradients that it left, before they are used.

        Under fp16's loss scaling single steps overflow, and are left out: there, only the loss is looked at.
        """
        values = [loss.detach().float()]
        if not self._state.scaler.is_enabled():
            gradients = [each.grad for each in self._state.model.parameters() if each.grad is not None]
            values.append(get_total_norm(gradients).to(loss.device))
        is_first = ~torch.isfinite(torch.stack(values)) & (self._first[: len(values)] == 0)
        self._first[: len(values)].masked_fill_(is_first, self._state.counters.step + 1)

    def first_failure(self) -> tuple[str, int] | None:
        """What was the first to be no finite number, and in which step (from 1); waits for the device."""
        loss_step, gradient_step = self._first.tolist()
        if loss_step and (not gradient_step or loss_step <= gradient_step):
            return "loss", loss_step
        if gradient_step:
            return "gradient", gradient_step
        if self._state.scaler.is_enabled() and self._state.scaler.get_scale() < 1:  # it begins at 65536
            return "gradient (in fp16, at every scale)", self._state.counters.step
        return None


@dataclass(frozen=True)
class SyncedLosses:
    """How training stands, over all processes: whether one was asked to stop, and what went wrong first, if anything.

    `sums` are those of the epoch's losses: total, reconstruction, KL; `failure` is what was no finite number, and when.
    """

    stops: bool
    sums: list[float]
    failure: tuple[str, int] | None


class LossSync:
    """Looks at how training stands: alone by the clock, several processes after as many steps as the first one says."""

    def __init__(
        self,
        distributed: Distributed,
        state: TrainState,
        watch: NonFiniteDetector,
        stream_positions: Callable[[], Any],
        should_stop: StopRequest,
    ) -> None:
        """`stream_positions()`: the positions of the shard groups that this rank reports, None without a stream."""
        self._distributed, self._state, self._watch = distributed, state, watch
        self._stream_positions, self._should_stop = stream_positions, should_stop
        self._stops = False
        self._looked_at, self._step = 0.0, state.counters.step
        self._next_step = self._step  # the first look tells how long a step takes

    def is_due(self) -> bool:
        """Whether to look after this step; every process comes to the same answer."""
        if self._distributed.world_size > 1:
            return self._state.counters.step >= self._next_step
        self._stops = self._should_stop()
        return self._stops or time.monotonic() - self._looked_at > SYNC_INTERVAL_SECONDS

    def sync(self) -> SyncedLosses:
        """Wait for the device, and for all processes; from then on the first one's state holds the sums of all."""
        state = self._state
        mine = {
            "stops": self._stops if self._distributed.world_size == 1 else self._should_stop(),
            "sums": state.sums.tolist(),
            "failure": self._watch.first_failure(),
            "stream_positions": self._stream_positions(),
            "steps": self._steps_to_go(),
        }
        told = self._distributed.all_gather_object(mine)
        sums = [sum(each) for each in zip(*(one["sums"] for one in told), strict=True)]
        if self._distributed.world_size > 1:
            state.sums.copy_(
                torch.tensor(sums if self._distributed.is_main_process else [0.0] * len(sums), dtype=state.sums.dtype)
            )
            self._next_step = state.counters.step + told[0]["steps"]
        state.keep_stream_positions([one["stream_positions"] for one in told])
        self._looked_at, self._step = time.monotonic(), state.counters.step
        failures = [(step, what) for what, step in (one["failure"] for one in told if one["failure"])]
        return SyncedLosses(any(one["stops"] for one in told), sums, min(failures)[::-1] if failures else None)

    def _steps_to_go(self) -> int:
        """About as many steps as take the time between two looks."""
        steps = self._state.counters.step - self._step
        seconds = time.monotonic() - self._looked_at
        return max(1, min(_MOST_STEPS, round(steps * SYNC_INTERVAL_SECONDS / seconds)))
