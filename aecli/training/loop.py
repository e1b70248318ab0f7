"""The training loop: a TrainConfig in, progress reports out. It never prints."""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import islice

import torch

from aecli.configs import TrainConfig
from aecli.errors import DataError, DeviceError, OutputError, PeerError, TrainingError, summarize
from aecli.progress import Notice, Stopped, StopRequest, never
from aecli.runtime.device import oom_as_device_error
from aecli.runtime.distributed import Distributed, peer_loss_as_error
from aecli.training.checkpointing import Saver, diverged, require_finite
from aecli.training.events import EpochReport, Finished, Interrupted, StepReport, TrainReport
from aecli.training.inputs.micro_batches import cut
from aecli.training.observers.previews import PreviewWriter
from aecli.training.observers.tensorboard import Log, log_of
from aecli.training.setup import Session, prepare
from aecli.training.validation import validate

_TICK = 1e-3  # seconds: a coarse clock can say that an epoch took none


def train(config: TrainConfig, should_stop: StopRequest = never) -> Iterator[TrainReport]:
    """Train a model as `config` says, in the run folder that the same options began, or in a new one.

    Reports come as it goes, Finished or Interrupted last. Once `should_stop()` says True, the run is saved where it
    is, in mid-epoch if need be, and ends; the same call later continues to what an uninterrupted run gives, bit for bit
    on a CPU. An iterator that is dropped before its end saves nothing more. Torch's global generator is seeded anew for
    every step; `deterministic`, and fp32's plain arithmetic on CUDA, stay set in the process.

    In processes that torchrun started, all of them must call this: they share each batch, and get the same reports; the
    first one writes.

    Raises:
        AecliError: one of its kinds, for options, data, checkpoints or outputs that can't be used, or a loss that is
            no number any more; in one of several processes also a PeerError, where another one failed.
    """
    with ExitStack() as held:
        try:
            distributed = held.enter_context(Distributed(should_stop))
        except Stopped:
            yield Interrupted(None, 0, 0)
            return
        if distributed.attempt:  # torchrun begins these processes again, not the run
            config = config.replace(restart=False)
        saver = None
        try:
            less = f"a smaller --batch-size than {config.optimization.batch_size}, --accumulate, or --precision bf16"
            with peer_loss_as_error(), oom_as_device_error(less):
                session = yield from prepare(config, distributed, should_stop, held)
                if session is None:
                    return
                saver = Saver(session)
                with log_of(session) as log:
                    yield from _run_epochs(session, saver, log)
        except Stopped:
            if saver is None:  # the others may not have been asked
                distributed.signal_failure()
            yield _stop(saver) if saver else Interrupted(None, 0, 0)
            return
        except PeerError:
            if not should_stop():
                raise
            distributed.signal_failure()  # another one was quicker to leave, for the same reason
            yield Interrupted(saver.session.folder if saver else None, 0, 0, is_saved=False)
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
    if session.distributed.is_main_process:
        session.folder.write_metrics(session.state.rows)
        PreviewWriter(session).draw_curves()
    session.distributed.barrier(may_stop=False)  # who leaves before all is saved may take the others along
    return Interrupted(session.folder, session.state.counters.epoch, session.state.counters.batch)


def _save_unfinished(saver: Saver) -> bool:
    """Save, and say whether that could be done: what couldn't be written before may have been a picture.

    A run that is done is not saved, and thereby marked so, before all of it is there; nor is a step in which other
    processes may be at another place.
    """
    if saver.session.is_done or saver.session.distributed.world_size > 1:
        return False
    try:
        saver.save()
    except OutputError:
        return False
    return True


def _end(session: Session) -> Finished:
    state, best = session.state, session.state.best
    pace = session.meter.pace(session.placement.device)
    return Finished(session.folder, state.counters.epoch, best.epoch, best.metrics, state.stopped_early, False, pace)


def _run_epochs(session: Session, saver: Saver, log: Log) -> Iterator[StepReport | EpochReport | Notice]:
    """Train the epochs that are left, saving now and then. What is drawn and listed comes before what marks it done."""
    told: set[str] = set()
    artist = PreviewWriter(session)
    while not session.is_done:
        for step_report in train_epoch(session):
            yield step_report
            log.step(step_report)
            saver.save_if_due()
        report = finish_epoch(session, saver)
        yield report
        yield from _new_gaps(session, told)
        if session.distributed.is_main_process:
            session.folder.write_metrics(session.state.rows)
            artist.draw_epoch()
            log.epoch(report)
        saver.save_epoch()
    session.distributed.barrier(may_stop=False)


def _new_gaps(session: Session, told: set[str]) -> Iterator[Notice]:
    """Say which images were found to be unreadable since the last time, by any process; adds them to `told`."""
    mine = {**session.loader.skipped, **session.val.skipped}
    new = {name: reason for name, reason in mine.items() if name not in told}
    found: dict[str, str] = {}
    for each in session.distributed.all_gather_object(new):
        found |= each
    if found:
        told.update(found)
        yield Notice(f"{len(found)} images can't be read and their neighbours take their places: {summarize(found)}")


def train_epoch(session: Session) -> Iterator[StepReport]:
    """Take the epoch's remaining steps. Order, flips and noise follow from the seed and the clock alone.

    Raises:
        Stopped: between two steps, because the caller asked to.
        TrainingError: a loss or gradient is no finite number, seen when the device is waited for.
    """
    config, state, loader, loss = session.config, session.state, session.loader, session.compute_loss
    counters = state.counters
    began, began_with, seconds_before = time.monotonic(), session.meter.images, counters.seconds

    with closing(loader.epoch(counters)) as batches:
        for images in session.meter.watch(islice(batches, session.batches - counters.batch)):
            # ---------------------------------------------------------------------------- a single training step
            count = loader.count(counters.batch)
            total = torch.zeros_like(state.sums[0])
            for micro in cut(images, count, counters.step, state.model, config, session.distributed):
                with loss.accumulating(not micro.is_last):
                    with session.placement.autocast():
                        losses = loss(micro.images, micro.noise)
                    # PyTorch averages over processes; what counts is the mean over images.
                    weight = micro.share * session.distributed.world_size
                    state.scaler.scale(losses.total * weight).backward()  # type: ignore[no-untyped-call]
                state.add(losses, micro.share)
                total += losses.total.detach()
            session.watch.update(total)
            state.optimizer_step()
            counters.step += 1
            counters.batch += 1
            counters.seconds = seconds_before + time.monotonic() - began
            session.meter.images += count
            # ---------------------------------------------------------------------------------------------------
            if session.exchange.is_due() or counters.batch == session.batches:
                look = session.exchange.sync()  # here alone the epoch waits for the device, and for other processes
                if look.stops:
                    raise Stopped
                require_finite(session, look.failure)
                rate = (session.meter.images - began_with) / (time.monotonic() - began)
                mean_loss = look.sums[0] / counters.batch
                yield StepReport(counters.epoch + 1, counters.batch, session.batches, mean_loss, state.lr, rate)


def finish_epoch(session: Session, saver: Saver) -> EpochReport:
    """Validate, step the schedule, keep the best weights, and begin the next epoch's clock.

    Raises:
        TrainingError: the validation loss is no finite number.
        Stopped: in mid-validation, with the clock still at the epoch's last batch.
    """
    config, state = session.config, session.state
    counters = state.counters
    train_loss, train_recon, train_kl = (each / counters.batch for each in session.exchange.sync().sums)
    train_seconds, began = counters.seconds, time.monotonic()
    images = (counters.batch - 1) * session.loader.count(0) + session.loader.count(counters.batch - 1)
    scores = None
    if len(session.val):

        def between_batches() -> bool:
            saver.save_if_due()  # the steps, though validation will be taken again
            return session.should_stop()

        scores = validate(session.state.eval_model, session.val, config.optimization.batch_size,
                          session.validation_placement, between_batches, session.distributed)  # fmt: skip
        if not math.isfinite(scores.loss):
            raise diverged(session, f"the validation loss of epoch {counters.epoch + 1}")
    row: dict[str, float | None] = {
        "epoch": counters.epoch + 1,
        "step": counters.step,
        "lr": state.lr,
        "train_loss": train_loss,
        "train_recon": train_recon,
        "train_kl": train_kl if state.has_kl else None,
        "val_loss": scores.loss if scores else None,
        "val_psnr": scores.psnr if scores else None,
        "val_ssim": scores.ssim if scores else None,
        "images_per_s": round(images / max(train_seconds, _TICK), 3),
        "seconds": round(train_seconds + time.monotonic() - began, 3),
    }
    state.finish_epoch(row, scores.loss if scores else train_loss, config.optimization.patience)
    return EpochReport(row, state.best.epoch, state.best.loss, state.best.metrics)
