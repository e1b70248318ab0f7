"""What training tells its caller, in the order of happening: Started, then steps and epochs, then how it ended."""

from dataclasses import dataclass
from typing import Any

from aecli.progress import Notice, Progress
from aecli.runs import RunFolder
from aecli.training.meter import Pace


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
    pace: Pace | None = None


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
