"""The training loop: a TrainConfig in, progress reports out. It never prints."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

from aecli.configs import TrainConfig
from aecli.data.batches import epoch_order, flips, iterate
from aecli.data.on_the_fly import OnTheFly
from aecli.errors import DataError, DeviceError, OutputError, TrainingError
from aecli.progress import Notice
from aecli.runtime.device import telling_out_of_memory
from aecli.training.images import Stopped
from aecli.training.previews import draw, is_preview_epoch
from aecli.training.reports import EpochReport, Finished, Interrupted, StepReport, TrainReport
from aecli.training.saving import Saver, diverged, require_finite
from aecli.training.session import Session, prepare
from aecli.training.state import seed_step
from aecli.training.validation import validate
from aecli.words import name_some

_TICK = 1e-3  # seconds: a coarse clock can say that an epoch took none
STEP_REPORT_SECONDS = 0.25  # reading the loss waits for the device, so not every step does


def train(config: TrainConfig, should_stop: Callable[[], bool] = lambda: False) -> Iterator[TrainReport]:
    """Train a model as `config` says, in the run folder that the same options began, or in a new one.

    Reports come as it goes, Finished or Interrupted last. Once `should_stop()` says True, the run is saved where it
    is, in mid-epoch if need be, and ends; the same call later continues to what an uninterrupted run gives, bit for bit
    on a CPU. An iterator that is dropped before its end saves nothing more. Torch's global generator is seeded anew for
    every step; `deterministic`, and fp32's plain arithmetic on CUDA, stay set in the process.

    Raises:
        AecliError: one of its kinds, for options, data, checkpoints or outputs that can't be used, or a loss that is
            no number any more.
    """
    with ExitStack() as held:
        saver = None
        try:
            with telling_out_of_memory(f"a smaller --batch-size than {config.batch_size}, or --precision bf16"):
                session = yield from prepare(config, should_stop, held)
                if session is None:
                    return
                saver = Saver(session)
                yield from _run_epochs(session, saver)
        except Stopped:
            yield _stop(saver) if saver else Interrupted(None, 0, 0)
            return
        except (TrainingError, DeviceError):  # the state is spoilt, or in the middle of a step
            if saver is not None:
                saver.save_best()
            raise
        except (OutputError, DataError) as error:
            if saver is None or not _save_unfinished(saver):
                raise
            said = f"{error}\nthe run is saved in {saver.session.folder.path}; the same command goes on with it"
            raise (OutputError if isinstance(error, OutputError) else DataError)(said) from error
        yield _end(session)


def _stop(saver: Saver) -> Interrupted:
    session = saver.session
    saver.save()
    session.folder.write_metrics(session.state.rows)
    return Interrupted(session.folder, session.state.clock.epoch, session.state.clock.batch)


def _save_unfinished(saver: Saver) -> bool:
    """Save, and say whether that could be done: what couldn't be written before may have been a picture.

    A run that is done is not saved, and thereby marked so, before all of it is there.
    """
    if saver.session.is_done:
        return False
    try:
        saver.save()
    except OutputError:
        return False
    return True


def _end(session: Session) -> Finished:
    state, best = session.state, session.state.best
    pace = session.meter.pace(session.placement.device)
    return Finished(session.folder, state.clock.epoch, best.epoch, best.metrics, state.stopped_early, False, pace)


def _run_epochs(session: Session, saver: Saver) -> Iterator[StepReport | EpochReport | Notice]:
    """Train the epochs that are left, saving now and then. What is drawn and listed comes before what marks it done."""
    told: set[str] = set()
    while not session.is_done:
        for step_report in train_epoch(session):
            yield step_report
            saver.save_if_due()
        yield finish_epoch(session, saver)
        yield from _new_gaps(session, told)
        session.folder.write_metrics(session.state.rows)
        if session.is_done or is_preview_epoch(session.state.clock.epoch):
            draw(session)
        saver.save_epoch()


def _new_gaps(session: Session, told: set[str]) -> Iterator[Notice]:
    """Say which images decoding on the fly has found to be unreadable since the last time; adds them to `told`."""
    found: dict[str, str] = {}
    for each in (session.train.images, session.val.images):
        if isinstance(each, OnTheFly):
            found |= {name: reason for name, reason in each.skipped.items() if name not in told}
    if found:
        told.update(found)
        yield Notice(f"{len(found)} images can't be read and their neighbours take their places: {name_some(found)}")


def train_epoch(session: Session) -> Iterator[StepReport]:
    """Take the epoch's remaining steps. Order, flips and noise follow from the seed and the clock alone.

    Raises:
        Stopped: between two steps, because the caller asked to.
        TrainingError: a loss or gradient is no finite number, seen when the device is waited for.
    """
    config, state, placement, images = session.config, session.state, session.placement, session.train
    clock = state.clock
    order = images.rows[epoch_order(len(images), config.seed, clock.epoch)]
    flip = flips(len(images.images), config.seed, clock.epoch) if config.flip else None
    began, began_at_batch = time.monotonic(), clock.batch
    seconds_before, reported_at = clock.seconds, 0.0

    with closing(
        iterate(images.nearest, order, config.batch_size, placement.device, placement.channels_last, flip, clock.batch)
    ) as batches:
        for batch in session.meter.watch(batches):
            # ---------------------------------------------------------------------------- a single training step
            seed_step(config.seed, clock.step)
            with placement.autocast():
                losses = session.compute_loss(batch)
            state.scaler.scale(losses.total).backward()  # type: ignore[no-untyped-call]
            session.watch.look(losses.total)
            state.scaler.step(state.optimizer)
            state.scaler.update()
            state.optimizer.zero_grad(set_to_none=True)
            if state.average is not None:
                state.average.update_parameters(state.model)
            state.add(losses)
            clock.step += 1
            clock.batch += 1
            clock.seconds = seconds_before + time.monotonic() - began
            # ---------------------------------------------------------------------------------------------------
            if session.should_stop():
                raise Stopped
            if time.monotonic() - reported_at > STEP_REPORT_SECONDS or clock.batch == session.batches:
                mean_loss = state.sums[0].item() / clock.batch  # here alone the epoch waits for the device
                require_finite(session)
                seen = min(clock.batch * config.batch_size, len(images)) - began_at_batch * config.batch_size
                rate = seen / (time.monotonic() - began)
                yield StepReport(clock.epoch + 1, clock.batch, session.batches, mean_loss, state.lr, rate)
                reported_at = time.monotonic()


def finish_epoch(session: Session, saver: Saver) -> EpochReport:
    """Validate, step the schedule, keep the best weights, and begin the next epoch's clock.

    Raises:
        TrainingError: the validation loss is no finite number.
        Stopped: in mid-validation, with the clock still at the epoch's last batch.
    """
    config, state = session.config, session.state
    clock = state.clock
    train_loss, train_recon, train_kl = (state.sums / session.batches).tolist()
    train_seconds, began = clock.seconds, time.monotonic()
    scores = None
    if len(session.val):

        def between_batches() -> bool:
            saver.save_if_due()  # the steps, though validation will be taken again
            return session.should_stop()

        scores = validate(session.state.evaluated_model, session.val, config.batch_size, session.validation_placement,
                          between_batches)  # fmt: skip
        if not math.isfinite(scores.loss):
            raise diverged(session, f"the validation loss of epoch {clock.epoch + 1}")
    row: dict[str, float | None] = {
        "epoch": clock.epoch + 1,
        "step": clock.step,
        "lr": state.lr,
        "train_loss": train_loss,
        "train_recon": train_recon,
        "train_kl": train_kl if state.has_kl else None,
        "val_loss": scores.loss if scores else None,
        "val_psnr": scores.psnr if scores else None,
        "val_ssim": scores.ssim if scores else None,
        "images_per_s": round(len(session.train) / max(train_seconds, _TICK), 3),
        "seconds": round(train_seconds + time.monotonic() - began, 3),
    }
    state.schedule.step(train_loss)
    state.rows.append(row)
    clock.epoch, clock.batch, clock.seconds = clock.epoch + 1, 0, 0.0
    state.sums.zero_()
    figures = {key: value for key, value in row.items() if key.startswith(("train_", "val_"))}
    state.keep_if_best(scores.loss if scores else train_loss, figures)
    state.stopped_early = config.patience is not None and clock.epoch - state.best.epoch >= config.patience
    return EpochReport(row, state.best.epoch, state.best.loss, state.best.metrics)
