"""What training tells its caller, in the order of happening: Started, then steps and epochs, then how it ended."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from aecli.progress import Notice, Progress
from aecli.runs.folder import RunFolder
from aecli.runtime.memory import peak_memory


@dataclass(frozen=True)
class Throughput:
    """Of the steps that one command took: images a second, the share of the time spent waiting for data (0 to 1).

    `peak_memory` in bytes is that of the CUDA device, else of the process; None where the system doesn't tell.
    """

    images_per_s: float
    data_wait_fraction: float
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

    def pace(self, device: torch.device) -> Throughput | None:
        """What came of it; None before the first step."""
        if self.seconds == 0:
            return None
        return Throughput(self.images / self.seconds, self.waiting_seconds / self.seconds, peak_memory(device))


@dataclass(frozen=True)
class Started:
    """The run is ready to step: where, on what, how large; `batches` an epoch, `batches_done` of the one under way."""

    run: RunFolder
    model: str
    parameters: int
    train_images: int | None  # None: a stream
    val_images: int
    epochs: int
    epochs_done: int
    batches_done: int
    batches: int
    placement: dict[str, Any]
    val_losses: tuple[float, ...] = ()  # of the epochs before


@dataclass(frozen=True)
class StepReport:
    """A few times a second: the epoch under way (from 1), its finished batches, its mean loss so far."""

    epoch: int
    batch: int
    batches: int
    loss: float
    lr: float
    images_per_s: float


@dataclass(frozen=True)
class EpochReport:
    """An epoch's row of metrics.csv, and the best epoch so far: its number, its loss and its figures."""

    row: dict[str, float | None]
    best_epoch: int
    best_loss: float
    best: dict[str, float | None]

    @property
    def epoch(self) -> int:
        """Its number, from 1."""
        return int(self.row["epoch"] or 0)


@dataclass(frozen=True)
class Finished:
    """All epochs done (or `stopped_early`); `was_finished` before this command began, which then has no `pace`."""

    run: RunFolder
    epochs: int
    best_epoch: int
    best: dict[str, float | None]
    stopped_early: bool
    was_finished: bool
    pace: Throughput | None = None


@dataclass(frozen=True)
class Interrupted:
    """Stopped on request and saved, `batch` batches after `epoch` whole epochs; no `run` if none had begun.

    Not `is_saved`: another process that shared the work was gone already; the last checkpoint is kept.
    """

    run: RunFolder | None
    epoch: int
    batch: int
    is_saved: bool = True


TrainReport = Progress | Notice | Started | StepReport | EpochReport | Finished | Interrupted
