"""Watches the parts of the loss while they are finite: one that explodes stays finite for long."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from aecli.diagnosis import exploded
from aecli.training.objectives import ADVERSARIAL
from aecli.training.state_schema import Counters

FOLD = 1000.0  # of the running median
WINDOW, LEAST = 101, 5  # synchronisations that the median is taken over, and before which nothing is said


class DivergenceMonitor:
    """Compares the mean of each part since the last synchronisation with its running median."""

    def __init__(self, names: Sequence[str], weights: Mapping[str, float]) -> None:
        """`names` are those of the sums behind the total; parts of no weight, and adversarial ones, are not watched."""
        self._weights = {name: weight for name, weight in weights.items() if name != ADVERSARIAL}
        self._names = ("loss", *names)
        self._epoch, self._batch, self._sums = -1, 0, [0.0] * len(self._names)
        self._seen: dict[str, deque[float]] = {name: deque(maxlen=WINDOW) for name in self._names}
        self._said: set[str] = set()

    def update(self, sums: Sequence[float], counters: Counters) -> Iterator[str]:
        """Take the epoch's sums so far, over all ranks; yield what to say of a part that exploded, once a part."""
        if counters.epoch != self._epoch or counters.batch < self._batch:
            self._epoch, self._batch, self._sums = counters.epoch, 0, [0.0] * len(self._names)
        batches = counters.batch - self._batch
        if batches <= 0:
            return
        means = {
            name: (now - before) / batches for name, now, before in zip(self._names, sums, self._sums, strict=True)
        }
        self._batch, self._sums = counters.batch, list(sums)
        usual = {name: median(seen) for name, seen in self._seen.items() if len(seen) >= LEAST}
        for name, weight in self._weights.items():
            value = means[name]
            if name not in usual or name in self._said:
                continue
            # A part that was next to nothing may grow a thousandfold: it must outweigh the loss too.
            if value > FOLD * usual[name] and weight * value > usual["loss"]:
                self._said.add(name)
                yield exploded(name, value, usual[name], counters.step).text
        for name, value in means.items():
            self._seen[name].append(value)
