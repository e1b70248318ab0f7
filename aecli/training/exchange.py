"""What processes that train one model tell each other now and then; alone, when the device is waited for."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from aecli.progress import StopRequest
from aecli.runtime.distributed import World
from aecli.training.finite import FiniteWatch
from aecli.training.state import TrainState

LOOK_SECONDS = 0.25  # reading the loss waits for the device, so not every step does
_MOST_STEPS = 10_000


@dataclass(frozen=True)
class Look:
    """How training stands, over all processes: whether one was asked to stop, and what went wrong first, if anything.

    `sums` are those of the epoch's losses: total, reconstruction, KL; `failure` is what was no finite number, and when.
    """

    stops: bool
    sums: list[float]
    failure: tuple[str, int] | None


class Exchange:
    """Looks at how training stands: alone by the clock, several processes after as many steps as the first one says."""

    def __init__(
        self, world: World, state: TrainState, watch: FiniteWatch, cursors: Callable[[], Any], should_stop: StopRequest
    ) -> None:
        """`cursors()` tells where this process's stream of images stands."""
        self._world, self._state, self._watch = world, state, watch
        self._cursors, self._should_stop = cursors, should_stop
        self._stops = False
        self._looked_at, self._step = 0.0, state.clock.step
        self._next_step = self._step  # the first look tells how long a step takes

    def is_due(self) -> bool:
        """Whether to look after this step; every process comes to the same answer."""
        if self._world.size > 1:
            return self._state.clock.step >= self._next_step
        self._stops = self._should_stop()
        return self._stops or time.monotonic() - self._looked_at > LOOK_SECONDS

    def look(self) -> Look:
        """Wait for the device, and for all processes; from then on the first one's state holds the sums of all."""
        state = self._state
        mine = {
            "stops": self._stops if self._world.size == 1 else self._should_stop(),
            "sums": state.sums.tolist(),
            "failure": self._watch.failure(),
            "cursors": self._cursors(),
            "steps": self._steps_to_go(),
        }
        told = self._world.gather_json(mine)
        sums = [sum(each) for each in zip(*(one["sums"] for one in told), strict=True)]
        if self._world.size > 1:
            state.sums.copy_(torch.tensor(sums if self._world.is_main else [0.0] * len(sums), dtype=state.sums.dtype))
            self._next_step = state.clock.step + told[0]["steps"]
        state.keep_cursors([one["cursors"] for one in told])
        self._looked_at, self._step = time.monotonic(), state.clock.step
        failures = [(step, what) for what, step in (one["failure"] for one in told if one["failure"])]
        return Look(any(one["stops"] for one in told), sums, min(failures)[::-1] if failures else None)

    def _steps_to_go(self) -> int:
        """About as many steps as take the time between two looks."""
        steps = self._state.clock.step - self._step
        seconds = time.monotonic() - self._looked_at
        return max(1, min(_MOST_STEPS, round(steps * LOOK_SECONDS / seconds)))
