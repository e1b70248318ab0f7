"""How fast a command trained, and what it waited for."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from aecli.runtime.memory import peak_memory


@dataclass(frozen=True)
class Pace:
    """Of the steps that one command took: images a second, the share of the time spent waiting for data (0 to 1).

    `peak_memory` in bytes is that of the CUDA device, else of the process; None where the system doesn't tell.
    """

    images_per_s: float
    waiting_share: float
    peak_memory: int | None


@dataclass
class Meter:
    """Sums over the steps that this command took; the images are those of all its processes."""

    images: int = 0
    seconds: float = 0.0
    waiting_seconds: float = 0.0

    def watch(self, batches: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield what `batches` yields, counting the time that each took to come, and that until the next."""
        while True:
            began = time.monotonic()
            batch = next(batches, None)
            waited = time.monotonic() - began
            if batch is None:
                return
            yield batch
            self.waiting_seconds += waited
            self.seconds += time.monotonic() - began

    def pace(self, device: torch.device) -> Pace | None:
        """What came of it; None before the first step."""
        if self.seconds == 0:
            return None
        return Pace(self.images / self.seconds, self.waiting_seconds / self.seconds, peak_memory(device))
