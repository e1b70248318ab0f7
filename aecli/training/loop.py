"""The training loop: a TrainConfig in, progress reports out. It never prints."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np
import torch

from aecli import checkpoints
from aecli.configs import TrainConfig
from aecli.data.batches import epoch_order, flips, iterate, normalise, quantise
from aecli.data.on_the_fly import Images, OnTheFly
from aecli.errors import DataError, DeviceError, TrainingError
from aecli.figures.curves import draw_curves
from aecli.figures.grid import draw_rows, png_bytes
from aecli.files import write_bytes
from aecli.progress import Notice
from aecli.runtime.device import telling_out_of_memory
from aecli.training.images import Stopped, name_some
from aecli.training.reports import EpochReport, Finished, Interrupted, StepReport, TrainReport
from aecli.training.session import Session, prepare
from aecli.training.state import seed_step
from aecli.training.validation import validate

STEP_REPORT_SECONDS = 0.25  # reading the loss waits for the device, so not every step does
SHORT_EPOCH_SECONDS = 30.0  # epochs shorter than this are not each worth a checkpoint
LONG_EPOCH_SECONDS = 600.0  # in epochs longer than this, the most work that a power cut costs
PREVIEW_IMAGES = 8  # of the validation images, and as many of the training images


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
    session = None
    try:
        with telling_out_of_memory(f"a smaller --batch-size than {config.batch_size}, or --precision bf16"):
            session = yield from prepare(config, should_stop)
            if session is None:
                return
            yield from _run_epochs(session)
    except Stopped:
        if session is not None:
            session.folder.write_metrics(session.state.rows)
            save(session)
        clock = session.state.clock if session else None
        yield Interrupted(session.folder if session else None, clock.epoch if clock else 0, clock.batch if clock else 0)
        return
    except (TrainingError, DeviceError, DataError):
        if session is not None:
            save_best(session)
        raise
    state, pace = session.state, session.meter.pace(session.placement.device)
    best = state.best
    yield Finished(session.folder, state.clock.epoch, best.epoch, best.metrics, state.stopped_early, False, pace)


def _run_epochs(session: Session) -> Iterator[StepReport | EpochReport | Notice]:
    """Train the epochs that are left, saving now and then. What is drawn and listed comes before what marks it done."""
    saved_at, has_saved = time.monotonic(), False
    told: set[str] = set()
    while not session.is_done:
        for step_report in train_epoch(session):
            yield step_report
            if time.monotonic() - saved_at > LONG_EPOCH_SECONDS:
                save(session)
                saved_at, has_saved = time.monotonic(), True
        yield finish_epoch(session)
        yield from _new_gaps(session, told)
        session.folder.write_metrics(session.state.rows)
        if session.is_done or is_preview_epoch(session.state.clock.epoch):
            draw(session)
        if session.is_done or not has_saved or time.monotonic() - saved_at > SHORT_EPOCH_SECONDS:
            save(session)
            saved_at, has_saved = time.monotonic(), True


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
                mean_loss = state.sums[0].item() / clock.batch  # the only place in the epoch that waits for the device
                seen = min(clock.batch * config.batch_size, len(images)) - began_at_batch * config.batch_size
                rate = seen / (time.monotonic() - began)
                yield StepReport(clock.epoch + 1, clock.batch, session.batches, mean_loss, state.lr, rate)
                reported_at = time.monotonic()


def finish_epoch(session: Session) -> EpochReport:
    """Validate, step the schedule, keep the best weights, and begin the next epoch's clock.

    Raises:
        TrainingError: the mean loss is no finite number.
        Stopped: in mid-validation, with the clock still at the epoch's last batch.
    """
    config, state = session.config, session.state
    clock = state.clock
    train_loss, train_recon, train_kl = (state.sums / session.batches).tolist()
    _require_finite(session, "train", train_loss)
    train_seconds, began = clock.seconds, time.monotonic()
    scores = None
    if len(session.val):
        scores = validate(session.state.evaluated_model, session.val, config.batch_size, session.validation_placement,
                          session.should_stop)  # fmt: skip
        _require_finite(session, "validation", scores.loss)
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
        "images_per_s": round(len(session.train) / train_seconds, 3),
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


def _require_finite(session: Session, what: str, loss: float) -> None:
    if not math.isfinite(loss):
        raise TrainingError(
            f"the {what} loss of epoch {session.state.clock.epoch + 1} is not a finite number: "
            f"try a smaller --lr than {session.config.lr:g}\nwhat was saved before it is still in {session.folder.path}"
        )


def save(session: Session) -> None:
    """Write the best weights, if they are new, and then everything needed to continue.

    In this order: a crash between the two leaves weights that the continued run will find again.
    """
    save_best(session)
    state = session.state
    checkpoints.save(session.folder.last, state.tensors(), {**session.header, **state.document()})


def save_best(session: Session) -> None:
    """Write the best weights, if they are not on the disk yet."""
    state = session.state
    if state.unsaved_best is not None:
        document = {**session.header, "epoch": state.best.epoch, "metrics": state.best.metrics}
        checkpoints.save(session.folder.model, state.unsaved_best, document)
        state.unsaved_best = None


def is_preview_epoch(epoch: int) -> bool:
    """The first ten epochs, then every tenth to a hundred, then every fiftieth: close to even on a log scale."""
    return epoch <= 10 or epoch % (10 if epoch <= 100 else 50) == 0


def draw(session: Session) -> None:
    """Draw the curves so far, and some validation and training images above their reconstructions.

    Both, because how far a model has learnt its training images by heart shows in the difference.
    """
    state, folder = session.state, session.folder
    write_bytes(folder.curves, draw_curves(state.rows))
    title = type(state.model).__name__
    rows = []
    for label, shown in (("Validation", session.val), ("Training", session.train)):
        if len(shown):
            chosen = shown.rows[np.linspace(0, len(shown) - 1, min(PREVIEW_IMAGES, len(shown))).round().astype(int)]
            originals, reconstructions = _reconstruct(session, shown.images, chosen)
            rows += [(label, list(originals)), (title, list(reconstructions))]
    write_bytes(folder.preview(state.clock.epoch), png_bytes(draw_rows(rows)))


def _reconstruct(session: Session, images: Images, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the chosen images and their reconstructions, uint8 (N, S, S, 3)."""
    placement, model = session.validation_placement, session.state.evaluated_model
    originals = images[chosen]
    batch = normalise(torch.from_numpy(originals).to(placement.device))
    model.eval()
    with torch.inference_mode(), placement.autocast():
        reconstructions = quantise(model(batch.contiguous(memory_format=placement.memory_format)))
    model.train()
    return originals.transpose(0, 2, 3, 1), reconstructions.permute(0, 2, 3, 1).cpu().numpy()
