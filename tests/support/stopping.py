"""Training that is asked to stop after a given number of steps."""

import itertools

from aecli.configs import TrainConfig
from aecli.training import loop
from aecli.training.events import Finished, Started, TrainReport


def train_until(config: TrainConfig, stop_after: int | None = None) -> list[TrainReport]:
    """Train; with `stop_after`, ask to stop once that many steps have been taken or validation batches begun.

    What training asks before is not counted: while it reads images, it asks the more often the longer that takes.
    """
    reports: list[TrainReport] = []
    calls = itertools.count(1)
    has_started = False

    def should_stop() -> bool:
        return stop_after is not None and has_started and next(calls) >= stop_after

    for report in loop.train(config, should_stop):
        reports.append(report)
        has_started = has_started or isinstance(report, Started)
    return reports


def train_in_pieces(config: TrainConfig, every: int = 7) -> list[TrainReport]:
    """Train, stopped whenever training has asked `every` times, and begun again; returns each piece's last report."""
    calls = itertools.count(1)
    ends: list[TrainReport] = []
    while not (ends and isinstance(ends[-1], Finished)):
        ends.append(list(loop.train(config, lambda: next(calls) % every == 0))[-1])
        assert len(ends) < 40
    return ends
