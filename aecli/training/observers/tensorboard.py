"""TensorBoard event files in the run folder."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aecli.errors import OutputError
from aecli.figures.columns import metric_name
from aecli.training.events import EpochReport, StepReport
from aecli.training.session import Session

_NAMES = {"train_loss": "loss/training", "val_loss": "loss/validation", "lr": "learning rate",
          "images_per_s": "images per second"}  # fmt: skip
_PREFIXES = {"train_": "loss/training ", "val_": "validation/"}  # of the names of other columns


def _name(column: str) -> str | None:
    """Return the name of a column's chart, or None for a column without one: `val_psnr` is `validation/PSNR`."""
    if column in _NAMES:
        return _NAMES[column]
    for prefix, name in _PREFIXES.items():
        if column.startswith(prefix):
            return name + metric_name(column)
    return None


class Log:
    """Logs nothing; the base of logs, whose methods raise OutputError."""

    def step(self, report: StepReport) -> None:
        """Log the mean loss of the epoch so far."""

    def epoch(self, report: EpochReport) -> None:
        """Log an epoch's row and its preview, if it has one."""


class _TensorBoardLog(Log):
    """Writes event files into the run folder, a new one on resume, without duplicate points."""

    def __init__(self, session: Session) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._session, step = session, session.state.counters.step
        with _as_output_error(session.folder.tensorboard):
            self._writer: Any = SummaryWriter(str(session.folder.tensorboard), purge_step=step + 1, flush_secs=30)
            if step == 0:
                options = json.dumps(session.folder.read_config()["options"], indent=2)
                self._writer.add_text("options", "    " + options.replace("\n", "\n    "), 0)

    def step(self, report: StepReport) -> None:
        with _as_output_error(self._session.folder.tensorboard):
            self._writer.add_scalar("loss/epoch so far", report.loss, self._session.state.counters.step)

    def epoch(self, report: EpochReport) -> None:
        step = int(report.row["step"] or 0)
        picture = self._session.folder.preview(report.epoch)
        with _as_output_error(self._session.folder.tensorboard):
            for column, value in report.row.items():
                if value is not None and (name := _name(column)) is not None:
                    self._writer.add_scalar(name, value, step)
            if picture.is_file():
                pixels = np.array(Image.open(picture).convert("RGB"))
                self._writer.add_image("preview", pixels, step, dataformats="HWC")

    def close(self) -> None:
        with _as_output_error(self._session.folder.tensorboard):
            self._writer.close()


@contextmanager
def open_log(session: Session) -> Iterator[Log]:
    """Yield the log that `--log` asks for, in the main process; elsewhere one that logs nothing.

    Raises:
        OutputError: the folder can't be written.
    """
    if session.config.run.log is None or not session.distributed.is_main_process:
        yield Log()
        return
    log = _TensorBoardLog(session)
    try:
        yield log
    finally:
        log.close()


@contextmanager
def _as_output_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{folder} can't be written: {error.strerror or error}") from error
