"""A run's numbers and pictures for TensorBoard, beside what the run folder holds anyway."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from aecli.errors import OutputError
from aecli.training.events import EpochReport, StepReport
from aecli.training.session import Session

_NAMES = {
    "train_loss": "loss/training", "val_loss": "loss/validation", "train_recon": "loss/training reconstruction",
    "train_kl": "loss/training KL divergence", "val_psnr": "validation/PSNR", "val_ssim": "validation/SSIM",
    "lr": "learning rate", "images_per_s": "images per second",
}  # fmt: skip


class Log(Protocol):
    """What hears of a run as it goes; its methods raise OutputError."""

    def step(self, report: StepReport) -> None:
        """Take a report between epochs."""

    def epoch(self, report: EpochReport) -> None:
        """Take an epoch's row, and its pictures if it has any."""


class NoLog:
    """Hears of it, and does nothing."""

    def step(self, report: StepReport) -> None:
        """Do nothing."""

    def epoch(self, report: EpochReport) -> None:
        """Do nothing."""


class TensorBoardLog:
    """Writes event files into the run folder; a run taken up again goes on in another, without double points."""

    def __init__(self, session: Session) -> None:
        """Begin an event file; what an earlier one says of the steps to come is void."""
        from torch.utils.tensorboard.writer import SummaryWriter

        self._session, step = session, session.state.counters.step
        with _as_data_error(session.folder.tensorboard):
            self._writer: Any = SummaryWriter(str(session.folder.tensorboard), purge_step=step + 1, flush_secs=30)
            if step == 0:
                options = json.dumps(session.folder.read_config()["options"], indent=2)
                self._writer.add_text("options", "    " + options.replace("\n", "\n    "), 0)

    def step(self, report: StepReport) -> None:
        """Take the mean loss of the epoch so far."""
        with _as_data_error(self._session.folder.tensorboard):
            self._writer.add_scalar("loss/epoch so far", report.loss, self._session.state.counters.step)

    def epoch(self, report: EpochReport) -> None:
        """Take an epoch's row, and its pictures if it has any."""
        step = int(report.row["step"] or 0)
        picture = self._session.folder.preview(report.epoch)
        with _as_data_error(self._session.folder.tensorboard):
            for column, name in _NAMES.items():
                if (value := report.row[column]) is not None:
                    self._writer.add_scalar(name, value, step)
            if picture.is_file():
                pixels = np.array(Image.open(picture).convert("RGB"))
                self._writer.add_image("preview", pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is waiting to be written."""
        with _as_data_error(self._session.folder.tensorboard):
            self._writer.close()


@contextmanager
def log_of(session: Session) -> Iterator[Log]:
    """Yield what hears of the run: as `--log` says, in the first process.

    Raises:
        OutputError: the disk is full, or the folder can't be written.
    """
    if session.config.run.log is None or not session.distributed.is_main_process:
        yield NoLog()
        return
    log = TensorBoardLog(session)
    try:
        yield log
    finally:
        log.close()


@contextmanager
def _as_data_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{folder} can't be written: {error.strerror or error}") from error
