"""When a run is saved, and what: the best weights, and everything needed to continue."""

import time

from aecli.errors import TrainingError
from aecli.runs import checkpoints
from aecli.training.setup import Session

SHORT_EPOCH_SECONDS = 30.0  # epochs shorter than this are not each worth a checkpoint


class Saver:
    """Saves a session when that is due, in its first process; never a state whose loss or gradient was not finite."""

    def __init__(self, session: Session) -> None:
        """The time runs from here."""
        self.session = session
        self._saved_at, self._has_saved = time.monotonic(), False
        self._most_seconds = 60 * session.config.run.checkpoint_every

    def save_if_due(self) -> None:
        """Save once `--checkpoint-every` is over; to be called now and then, at any point between two steps."""
        if time.monotonic() - self._saved_at > self._most_seconds:
            self.save()

    def save_epoch(self) -> None:
        """Save a finished epoch, unless the last save is only just over and there are more epochs to come."""
        pause = min(SHORT_EPOCH_SECONDS, self._most_seconds)
        if self.session.is_done or not self._has_saved or time.monotonic() - self._saved_at > pause:
            self.save()

    def save(self) -> None:
        """Write the best weights, if they are new, and then everything needed to continue.

        In this order: a crash between the two leaves weights that the continued run will find again.

        Raises:
            TrainingError: a loss or gradient since the last save is no finite number; what was saved then is kept.
            OutputError: the folder can't be written.
        """
        self.save_best()
        require_finite(self.session, self.session.watch.first_failure())
        state = self.session.state
        if self.session.distributed.is_main_process:
            checkpoints.save(self.session.folder.last, state.tensors(), {**self.session.header, **state.document()})
        self._saved_at, self._has_saved = time.monotonic(), True

    def save_best(self) -> None:
        """Write the best weights, if they are not on the disk yet; raises OutputError."""
        session, state = self.session, self.session.state
        if state.unsaved_best is not None and session.distributed.is_main_process:
            document = {**session.header, "epoch": state.best.epoch, "metrics": state.best.metrics}
            checkpoints.save(session.folder.model, state.unsaved_best, document)
        state.unsaved_best = None


def require_finite(session: Session, failure: tuple[str, int] | None) -> None:
    """Go on only if there was no `failure`: what was no finite number, and in which step.

    Raises:
        TrainingError: the message names the step, and the checkpoint from before it.
    """
    if failure is not None:
        what, step = failure
        raise diverged(session, f"the {what} of step {step}, in epoch {session.state.counters.epoch + 1},")


def diverged(session: Session, what: str) -> TrainingError:
    """The error that says so, with the mend and the last good checkpoint."""
    folder = session.folder
    kept = "nothing had been saved before it"
    if folder.last.exists():
        clock = (checkpoints.read_document(folder.last) or {})["clock"]
        kept = f"the last good checkpoint is kept: {folder.last}, after epoch {clock['epoch']}, step {clock['batch']}"
    return TrainingError(
        f"{what} is not a finite number: try a smaller --lr than {session.config.optimization.lr:g}\n{kept}"
    )
