"""When a run is saved, and what: the best weights, and everything needed to resume."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from aecli.configs.train import OptimizationConfig
from aecli.diagnosis import not_finite
from aecli.errors import DataError, DeviceError, OutputError, TrainingError
from aecli.progress import Stopped
from aecli.runs import checkpoints
from aecli.storage import atomic_files
from aecli.training.observers.previews import PreviewWriter
from aecli.training.reports import Left
from aecli.training.session import Session

SHORT_EPOCH_SECONDS = 30.0  # epochs shorter than this are not each worth a checkpoint


class Checkpointer:
    """Saves a session when that is due, on rank 0; never a state whose loss or gradient was not finite."""

    def __init__(self, session: Session) -> None:
        """Count the time from now."""
        self.session = session
        self._saved_at, self._has_saved = time.monotonic(), False
        self._interval = 60 * session.config.run.checkpoint_every

    def save_if_due(self) -> None:
        """Save if `--checkpoint-every` is over; may be called at any point between two steps."""
        if time.monotonic() - self._saved_at > self._interval:
            self.save()

    def save_epoch(self) -> None:
        """Save a finished epoch, unless the last save is only just over and there are more epochs to come."""
        interval = min(SHORT_EPOCH_SECONDS, self._interval)
        if self.session.is_done or not self._has_saved or time.monotonic() - self._saved_at > interval:
            self.save()

    def save(self) -> None:
        """Write the best weights, if they are new, and then everything needed to resume.

        In this order: a crash between the two leaves weights that the resumed run will find again.

        Raises:
            TrainingError: a loss or gradient since the last save was not finite; the last checkpoint is kept.
            OutputError: the folder can't be written.
        """
        self.save_best()
        require_finite(self.session, self.session.sync.detector.first_failure())
        state = self.session.state
        if self.session.distributed.is_main_process:
            document = {**self.session.plan.model_document, **state.document()}
            checkpoints.save(self.session.folder.last, state.tensors(), document)
        self._saved_at, self._has_saved = time.monotonic(), True

    def save_best(self) -> None:
        """Write the best weights, if they are not on the disk yet; raises OutputError."""
        session, state = self.session, self.session.state
        if state.unsaved_best is not None and session.distributed.is_main_process:
            document = {**session.plan.model_document, "epoch": state.best.epoch, "metrics": state.best.metrics}
            checkpoints.save(session.folder.model, state.unsaved_best, document)
        state.unsaved_best = None

    def keep_best_before_adversarial(self) -> None:
        """Write the best weights so far under a name of their own, if there are any: from now on others are best.

        Raises:
            OutputError: the folder can't be written.
        """
        session, folder = self.session, self.session.folder
        self.save_best()
        # After a crash the best weights on the disk may be of later steps; then the copy is there already.
        has_best = session.state.best.epoch > 0 and not folder.before_adversarial.exists()
        if has_best and session.distributed.is_main_process:
            atomic_files.copy_file(folder.model, folder.before_adversarial)


@contextmanager
def saved_on_failure(checkpointer: Checkpointer) -> Iterator[None]:
    """Save what can be resumed from when training in this block is stopped or fails.

    A stop, which all processes take after the same step, saves everything. Writes or images that fail do so too, where
    that can be done. After a loss that is not finite, or an error of the device, the state may be spoilt: then only the
    best weights are saved. After any other exception, which may have torn a step, nothing is.
    """
    session = checkpointer.session
    try:
        yield
    except Stopped as stop:
        checkpointer.save()
        if session.distributed.is_main_process and not isinstance(stop, Left):
            PreviewWriter(session).write_curves()
        session.distributed.barrier(may_stop=False)  # a process that leaves earlier may take the others along
        raise
    except (TrainingError, DeviceError):
        checkpointer.save_best()
        raise
    except (OutputError, DataError) as error:
        if not _save_unfinished(checkpointer):
            raise
        kind = OutputError if isinstance(error, OutputError) else DataError
        raise kind(f"{error}\nhint: the run is saved in {session.folder.path}: the same command resumes it") from error


def _save_unfinished(checkpointer: Checkpointer) -> bool:
    """Save, and return whether that succeeded: the write that failed may have been a picture's.

    A run that is done is not saved, and so marked as finished, before all of its files are written; nor is a step in
    which other processes may be at another place.
    """
    if checkpointer.session.is_done or checkpointer.session.distributed.world_size > 1:
        return False
    try:
        checkpointer.save()
    except OutputError:
        return False
    return True


def require_finite(session: Session, failure: tuple[str, int] | None) -> None:
    """Raise TrainingError if there is a `failure`: what was not finite, and in which step."""
    if failure is not None:
        what, step = failure
        raise diverged(session, f"the {what} of step {step}, in epoch {session.state.counters.epoch + 1},")


def diverged(session: Session, what: str) -> TrainingError:
    """Return the error for a loss that is not finite, which names the last good checkpoint."""
    folder = session.folder
    kept = "nothing had been saved before it"
    if folder.last.exists():
        counters = (checkpoints.read_document(folder.last) or {})["clock"]
        kept = f"{folder.last}, after epoch {counters['epoch']}, step {counters['batch']}, is kept"
    lr = session.config.optimization.lr
    return TrainingError(not_finite(what, lr, OptimizationConfig.lr, kept))
