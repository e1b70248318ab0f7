"""The training loop: a TrainConfig in, progress reports out. It never prints."""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import islice

from aecli.configs import TrainConfig
from aecli.diagnosis import discriminator_won
from aecli.errors import PeerError, summarize
from aecli.progress import Notice, Stopped, StopRequest, never
from aecli.runs.folder import COLUMNS
from aecli.runtime.distributed import Distributed, peer_loss_as_error
from aecli.runtime.out_of_memory import oom_as_device_error
from aecli.training.checkpointing import Checkpointer, diverged, require_finite, saved_on_failure
from aecli.training.divergence import DivergenceMonitor
from aecli.training.events import EpochReport, Finished, Interrupted, StepReport, TrainReport
from aecli.training.observers.previews import PreviewWriter
from aecli.training.observers.tensorboard import Log, open_log
from aecli.training.reports import Reports, saved_at_its_end
from aecli.training.session import Session
from aecli.training.setup import prepare
from aecli.training.step import train_step
from aecli.training.validation import Scores, validate

_MIN_SECONDS = 1e-3  # a coarse clock can say that an epoch took none


def train(config: TrainConfig, should_stop: StopRequest = never) -> Reports:
    """Train a model as `config` says, in the run folder that the same options began, or in a new one.

    Reports come as it goes, Finished or Interrupted last. Once `should_stop()` returns True, the run is saved where it
    is, in mid-epoch if need be, and ends; the same call later resumes it, with the results of an uninterrupted run, bit
    for bit on a CPU. An iterator that ends otherwise has saved the run too: `saved_at_its_end` says when. Torch's
    global generator is seeded anew for every step; `deterministic`, and fp32's plain arithmetic on CUDA, stay set in
    the process.

    In processes that torchrun started, all of them must call this: they share each batch, and get the same reports;
    rank 0 writes. Where one of them leaves its iterator, the others get Interrupted after the same step.

    Raises:
        AecliError: one of its kinds, for options, data, checkpoints or outputs that can't be used, or a loss that is
            not finite; in one of several processes also a PeerError, where another one failed.
        KeyboardInterrupt: after Ctrl-C, once the run is saved; a second Ctrl-C raises it at once.
    """
    return saved_at_its_end(partial(_run, config), should_stop)


def _run(config: TrainConfig, should_stop: StopRequest) -> Reports:
    """Set up and train; all processes and resources of the run are held in here."""
    distributed, session = Distributed(should_stop), None
    with ExitStack() as resources:
        try:
            resources.enter_context(distributed)
            if distributed.attempt:  # torchrun restarts the processes, not the run
                config = config.replace(restart=False)
            with backend_errors_translated(config):
                session = yield from prepare(config, distributed, should_stop, resources)
            if session is not None:
                yield from _train(session)
        except (Stopped, PeerError) as error:
            is_saved = session is not None and isinstance(error, Stopped)
            if isinstance(error, PeerError) and not should_stop():
                raise
            if not is_saved:  # other processes may not have been asked to stop, or left already for the same reason
                distributed.signal_failure()
            yield _interrupted(session, is_saved)


@contextmanager
def backend_errors_translated(config: TrainConfig) -> Iterator[None]:
    """Convert PyTorch's errors of lost processes and too little memory to PeerError and DeviceError."""
    less = f"a smaller --batch-size than {config.optimization.batch_size}, --grad-accum, or --precision bf16"
    with peer_loss_as_error(), oom_as_device_error(less):
        yield


def _interrupted(session: Session | None, is_saved: bool) -> Interrupted:
    if session is None:
        return Interrupted(None, 0, 0)
    counters = session.state.counters
    return Interrupted(session.folder, counters.epoch, counters.batch, is_saved)


def _train(session: Session) -> Iterator[TrainReport]:
    checkpointer = Checkpointer(session)
    with saved_on_failure(checkpointer), backend_errors_translated(session.config), open_log(session) as log:
        yield from _run_epochs(session, checkpointer, log)
    state, best = session.state, session.state.best
    throughput = session.throughput.throughput(session.plan.placement.device)
    yield Finished(
        session.folder, state.counters.epoch, best.epoch, best.metrics, state.stopped_early, was_finished=False,
        pace=throughput, conversions=session.conversions, findings=session.plan.findings(state.rows, best),
    )  # fmt: skip


def _run_epochs(session: Session, checkpointer: Checkpointer, log: Log) -> Iterator[StepReport | EpochReport | Notice]:
    """Train the epochs that are left. Each report finds the state whole, and the files of the epochs that it tells of.

    Metrics and pictures are written before the checkpoint that marks the end.
    """
    reported: set[str] = set()
    has_epoch, has_won = False, False
    previews = PreviewWriter(session)
    monitor = DivergenceMonitor(session.state.names, session.state.objective.weights)
    while not session.is_done:
        for step_report in train_epoch(session, monitor):
            yield step_report
            if isinstance(step_report, StepReport):
                log.step(step_report)
                checkpointer.save_if_due()
        report = finish_epoch(session, checkpointer)
        if session.distributed.is_main_process:
            session.folder.write_metrics(session.state.rows)
            previews.write_epoch()
            log.epoch(report)
        checkpointer.save_epoch()
        yield report
        if not has_won and (won := discriminator_won(report.row)):
            has_won = True
            yield Notice(won.text)
        yield from _report_unreadable(session, reported)
        if not has_epoch:  # of images decoded on the fly, the first epoch says what was done to them
            yield from _report_conversions(session)
            has_epoch = True
    session.distributed.barrier(may_stop=False)


def _report_unreadable(session: Session, reported: set[str]) -> Iterator[Notice]:
    """Name the images that any process failed to read since the last time; adds them to `reported`."""
    mine = {**session.inputs.loader.skipped, **session.inputs.val.skipped}
    new = {name: reason for name, reason in mine.items() if name not in reported}
    found: dict[str, str] = {}
    for each in session.distributed.all_gather_object(new):
        found |= each
    if found:
        reported.update(found)
        yield Notice(f"{len(found)} images can't be read and their neighbours take their places: {summarize(found)}")


def _report_conversions(session: Session) -> Iterator[Notice]:
    """Say what decoding did to images that are not kept decoded, in this process."""
    data = session.config.data
    counted = [(data.source, session.inputs.loader.conversions)]
    if data.val_source is not None:  # a split's two sides are counted together
        counted.append((data.val_source, session.inputs.val.conversions))
    for source, counts in counted:
        for text in counts.notices(source, data.background):
            yield Notice(text)


def train_epoch(session: Session, monitor: DivergenceMonitor) -> Iterator[StepReport | Notice]:
    """Take the epoch's remaining steps. Order, flips and noise follow from the seed and the counters alone.

    Raises:
        Stopped: between two steps, because the caller asked to.
        TrainingError: a loss or gradient was not finite, which is found out at the next synchronisation.
    """
    plan, state, loader = session.plan, session.state, session.inputs.loader
    counters = state.counters
    began = time.monotonic() - counters.seconds
    with closing(loader.epoch(counters)) as batches:
        for images in session.throughput.measure(islice(batches, session.batches - counters.batch)):
            count = loader.count(counters.batch)
            lr = session.schedule(counters.step, state.rows)
            train_step(images, count, lr, plan, state, session.step_model, session.sync.detector)
            counters.seconds = time.monotonic() - began
            session.throughput.images += count
            if session.sync.is_due() or counters.batch == session.batches:
                synced = session.sync.sync()  # only here does the epoch wait for the device and for other processes
                if synced.stops:
                    raise Stopped
                require_finite(session, synced.failure)
                for text in monitor.update(synced.sums, counters):
                    yield Notice(text)
                loss = synced.sums[0] / counters.batch
                rate = session.images_done / max(time.monotonic() - began, _MIN_SECONDS)
                yield StepReport(counters.epoch + 1, counters.batch, session.batches, loss, state.lr, rate)


def finish_epoch(session: Session, checkpointer: Checkpointer) -> EpochReport:
    """Validate, step the scheduler, keep the best weights, and reset the epoch's counters.

    Raises:
        TrainingError: the validation loss is not finite.
        Stopped: in mid-validation, with the counters still at the epoch's last batch.
    """
    config, state = session.config, session.state
    counters = state.counters
    means = state.means(session.sync.sync().sums)
    train_seconds, began = counters.seconds, time.monotonic()
    scores = Scores()
    if len(session.inputs.val):

        def between_batches() -> bool:
            checkpointer.save_if_due()  # the training steps; a resumed run validates from the beginning
            return session.should_stop()

        scores = validate(state.eval_model, session.inputs.val, session.metrics, config.optimization.batch_size,
                          session.plan.validation_placement, between_batches, session.distributed)  # fmt: skip
        if scores.loss is not None and not math.isfinite(scores.loss):
            raise diverged(session, f"the validation loss of epoch {counters.epoch + 1}")
    row: dict[str, float | None] = {
        **dict.fromkeys(COLUMNS),
        "epoch": counters.epoch + 1,
        "step": counters.step,
        "lr": state.lr,
        **{f"train_{name}": value for name, value in means.items()},
        **{f"val_{name}": value for name, value in vars(scores).items()},
        "images_per_s": round(session.images_done / max(train_seconds, _MIN_SECONDS), 3),
        "seconds": round(train_seconds + time.monotonic() - began, 3),
    }
    if state.begins_adversarial_phase:
        checkpointer.keep_best_before_adversarial()
    state.finish_epoch(row, config.optimization)
    best = state.best.metrics
    best_loss = best["train_loss"] if best["val_loss"] is None else best["val_loss"]
    assert best_loss is not None  # every row has a train loss
    return EpochReport(row, state.best.epoch, best_loss, best)
