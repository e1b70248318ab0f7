"""What ranks exchange every few steps; a single process only then waits for the device."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aecli.progress import StopRequest
from aecli.runtime.distributed import Distributed
from aecli.training.state import TrainState

SYNC_INTERVAL_SECONDS = 0.25  # reading the loss waits for the device, so not every step does
_MAX_STEPS = 10_000


class NonFiniteDetector:
    """Checks every step, on the device, and keeps the first one in which a loss or a gradient was not finite."""

    def __init__(self, state: TrainState) -> None:
        """Check the steps of `state` from now on: its losses, and the gradients of each network that is trained."""
        self._state = state
        losses = [f"loss '{name}'" for name in state.names]
        self._names = [*losses, "gradient", *(f"gradient of the {name}" for name in state.critics)]
        self._first = torch.zeros(len(self._names), dtype=torch.int64, device=state.sums.device)

    def update(self, norms: Sequence[Tensor | None]) -> None:
        """Check a finished step: what it added to the sums, and the `norms` of its gradients, None where not checked.

        Under fp16's loss scaling single steps overflow, and are skipped: then only the losses are checked.
        """
        sums = self._state.sums
        values = [sums[1:], *(sums.new_zeros(1) if norm is None else norm.to(sums).view(1) for norm in norms)]
        is_first = ~torch.isfinite(torch.cat(values)) & (self._first == 0)
        self._first.masked_fill_(is_first, self._state.counters.step + 1)

    def first_failure(self) -> tuple[str, int] | None:
        """Return what was not finite first, and in which step (from 1); waits for the device."""
        found = [(step, number) for number, step in enumerate(self._first.tolist()) if step]
        if found:
            step, number = min(found)
            return self._names[number], step
        scaler = self._state.learner.scaler
        if scaler.is_enabled() and scaler.get_scale() < 1:  # it begins at 65536
            return "gradient (in fp16, at every scale)", self._state.counters.step
        return None


@dataclass(frozen=True)
class SyncedLosses:
    """State of the training over all ranks: whether one was asked to stop, and the first failure.

    `sums` are the epoch's, as in `TrainState`; `failure` is what was not finite, and in which step.
    """

    stops: bool
    sums: list[float]
    failure: tuple[str, int] | None


class LossSync:
    """Synchronises losses, failures and stop requests: by the clock, or with several ranks every so many steps."""

    def __init__(
        self,
        distributed: Distributed,
        state: TrainState,
        stream_positions: Callable[[], Any],
        should_stop: StopRequest,
    ) -> None:
        """`stream_positions()`: the positions of the shard groups that this rank reports, None without a stream."""
        self.detector = NonFiniteDetector(state)
        self._distributed, self._state = distributed, state
        self._stream_positions, self._should_stop = stream_positions, should_stop
        self._stops = False
        self._synced_at, self._synced_step = 0.0, state.counters.step
        self._next_step = self._synced_step  # the first synchronisation measures how long a step takes

    def is_due(self) -> bool:
        """Whether to synchronise after this step; every rank gets the same answer."""
        if self._distributed.world_size > 1:
            return self._state.counters.step >= self._next_step
        self._stops = self._should_stop()
        return self._stops or time.monotonic() - self._synced_at > SYNC_INTERVAL_SECONDS

    def sync(self) -> SyncedLosses:
        """Wait for the device and for all ranks; afterwards rank 0's state holds the sums of all of them."""
        state = self._state
        gathered = self._distributed.all_gather_object({
            "stops": self._stops if self._distributed.world_size == 1 else self._should_stop(),
            "sums": state.sums.tolist(),
            "failure": self.detector.first_failure(),
            "stream_positions": self._stream_positions(),
            "steps": self._steps_until_next(),
        })  # fmt: skip
        sums = [sum(each) for each in zip(*(one["sums"] for one in gathered), strict=True)]
        if self._distributed.world_size > 1:
            kept = sums if self._distributed.is_main_process else [0.0] * len(sums)
            state.sums.copy_(torch.tensor(kept, dtype=state.sums.dtype))
            self._next_step = state.counters.step + gathered[0]["steps"]
        state.keep_stream_positions([one["stream_positions"] for one in gathered])
        self._synced_at, self._synced_step = time.monotonic(), state.counters.step
        failures = [(step, what) for what, step in (one["failure"] for one in gathered if one["failure"])]
        return SyncedLosses(any(one["stops"] for one in gathered), sums, min(failures)[::-1] if failures else None)

    def _steps_until_next(self) -> int:
        """Return how many steps take about the time between two synchronisations."""
        steps = self._state.counters.step - self._synced_step
        seconds = time.monotonic() - self._synced_at
        return max(1, min(_MAX_STEPS, round(steps * SYNC_INTERVAL_SECONDS / seconds)))
