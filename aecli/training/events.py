"""Reports that training yields, in this order: Started, steps and epochs, then Finished or Interrupted."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from aecli.diagnosis import Finding
from aecli.models.base import Kept
from aecli.progress import Notice, Progress
from aecli.runs.folder import RunFolder
from aecli.runtime.memory import peak_memory


@dataclass(frozen=True)
class Throughput:
    """Images per second of one command's steps, and the fraction (0 to 1) of their time spent waiting for data.

    `peak_memory` in bytes is that of the CUDA device, else of the process; None where it is not known.
    """

    images_per_s: float
    data_wait_fraction: float
    peak_memory: int | None


@dataclass
class ThroughputMeter:
    """Counts the images of all ranks, and times the steps of this command."""

    images: int = 0
    seconds: float = 0.0
    waiting_seconds: float = 0.0

    def measure(self, batches: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield from `batches`; add the time spent waiting for each, and that until the next."""
        while True:
            began = time.monotonic()
            batch = next(batches, None)
            waited = time.monotonic() - began
            if batch is None:
                return
            yield batch
            self.waiting_seconds += waited
            self.seconds += time.monotonic() - began

    def throughput(self, device: torch.device) -> Throughput | None:
        """Return the throughput so far; None before the first step."""
        if self.seconds == 0:
            return None
        return Throughput(self.images / self.seconds, self.waiting_seconds / self.seconds, peak_memory(device))


@dataclass(frozen=True)
class Started:
    """The run is about to train; `batches_done` of the current epoch's `batches` were trained before this command."""

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
    augmentation: str = ""  # of training images, in words
    kept: Kept | None = None  # by the latents of an autoencoder


@dataclass(frozen=True)
class StepReport:
    """A few times a second: the current epoch (from 1), its finished batches, its mean loss and speed so far."""

    epoch: int
    batch: int
    batches: int
    loss: float
    lr: float
    images_per_s: float


@dataclass(frozen=True)
class EpochReport:
    """A finished epoch's row of metrics.csv, and the best epoch so far: its number, loss and metrics."""

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
    """All epochs are done, or `stopped_early`. A run that `was_finished` before this command has no `pace`."""

    run: RunFolder
    epochs: int
    best_epoch: int
    best: dict[str, float | None]
    stopped_early: bool
    was_finished: bool
    pace: Throughput | None = None
    conversions: Mapping[str, Any] = field(default_factory=dict)  # source -> what was done to its images, as JSON
    findings: tuple[Finding, ...] = ()  # what its losses, rates and KL show


@dataclass(frozen=True)
class Interrupted:
    """Stopped on request, `batch` batches after `epoch` whole epochs; `run` is None if none had begun.

    Not `is_saved`: another rank had already left, so that the last checkpoint is the newest.
    """

    run: RunFolder | None
    epoch: int
    batch: int
    is_saved: bool = True


TrainReport = Progress | Notice | Started | StepReport | EpochReport | Finished | Interrupted
