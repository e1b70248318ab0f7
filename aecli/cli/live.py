"""Training on the command line: its progress on stderr, a summary on stdout at the end."""

import time
from dataclasses import asdict
from typing import Any

import typer
from rich.text import Text

from aecli.cli import console
from aecli.cli.display import Bar, Display, duration, open_display
from aecli.cli.signals import StopRequest
from aecli.cli.signposts import after_training
from aecli.cli.sparkline import SPARKS, sparkline
from aecli.configs import TrainConfig
from aecli.errors import printable
from aecli.figures.columns import metric_name
from aecli.progress import Notice, Progress
from aecli.training.events import EpochReport, Finished, Interrupted, Started, StepReport, Throughput, TrainReport
from aecli.training.loop import train


def show_training(config: TrainConfig, as_json: bool, quiet: bool) -> None:
    """Train, showing progress; exits with status 130 (or 143) if a signal ended it."""
    end: Finished | Interrupted | None = None
    with StopRequest() as request, open_display(quiet) as display:
        show = _TrainingView(display)
        for report in train(config, request.stop):
            if isinstance(report, Finished | Interrupted):
                end = report
            else:
                show(report)
    if as_json and end is not None:
        console.print_json(_end_to_json(end))
    elif isinstance(end, Finished):
        print_finished(end)
        if not quiet:
            is_validated = end.best.get("val_loss") is not None
            console.show_next(after_training(config, end.run, is_validated))
    if isinstance(end, Interrupted):
        _print_interrupted(end, config.run.restart)
        raise typer.Exit(request.exit_status)


class _TrainingView:
    """Shows reports of training: a bar of epochs, one of the epoch's steps, and a line of validation losses.

    In a log, the first and the last epoch have a line each, and what is between them occasional ones.
    """

    def __init__(self, display: Display) -> None:
        self._display = display
        self._began = time.monotonic()
        self._best = ""
        self._val_losses: list[float] = []

    def __call__(self, report: TrainReport) -> None:
        if isinstance(report, Notice | Progress):
            self._display(report)
        elif isinstance(report, Started):
            self._start(report)
        elif isinstance(report, StepReport):
            rate = f"loss {report.loss:.4f}  lr {report.lr:.1e}  {report.images_per_s:.3g} img/s"
            bars = [self._epochs(report.epoch - 1, report.batch), Bar("step", report.batch, report.batches, rate)]
            self._display.update(bars, f"epoch {report.epoch}  step {report.batch}/{report.batches}  {rate}")
        elif isinstance(report, EpochReport):
            self._end_epoch(report)

    def _start(self, started: Started) -> None:
        self._started, self._began = started, time.monotonic()
        self._display.clear()
        self._display.print(Text(printable(started_line(started))))
        if started.augmentation:
            self._display.print(Text(f"augmentation: {started.augmentation}"))
        self._display.update([Bar("epoch", started.epochs_done, started.epochs, "")], "")
        self._val_losses = list(started.val_losses)
        self._show_losses()

    def _end_epoch(self, report: EpochReport) -> None:
        psnr = report.best["val_psnr"]
        self._best = (
            f"best {report.best_loss:.4f}  " if psnr is None else f"best {report.best_loss:.4f} ({psnr:.2f} dB)  "
        )
        if (loss := report.row["val_loss"]) is not None:
            self._val_losses.append(loss)
            self._show_losses()
        line = f"{epoch_line(report, self._started.epochs)}  {self._time_left(report.epoch, 0)} left"
        is_first_or_last = report.epoch in (self._started.epochs_done + 1, self._started.epochs)
        self._display.update([self._epochs(report.epoch, 0)], line, always=is_first_or_last)

    def _epochs(self, epoch: int, batch: int) -> Bar:
        return Bar("epoch", epoch, self._started.epochs, f"{self._best}{self._time_left(epoch, batch)} left")

    def _time_left(self, epoch: int, batch: int) -> str:
        """Time left after `epoch` epochs and `batch` batches of the next, from the pace since this command began."""
        started = self._started
        now = epoch + batch / started.batches
        done = now - started.epochs_done - started.batches_done / started.batches
        return duration((time.monotonic() - self._began) / done * (started.epochs - now)) if done > 0 else "–"

    def _show_losses(self) -> None:
        if line := sparkline(self._val_losses, SPARKS):
            self._display.set_footer(f"val loss {line} {self._val_losses[-1]:.4f}")


def started_line(started: Started) -> str:
    """One line on the run that begins or resumes."""
    resumes = started.epochs_done or started.batches_done
    step = f", step {started.batches_done}" if started.batches_done else ""
    after = f" after epoch {started.epochs_done}{step}" if resumes else ""
    images = "a stream" if started.train_images is None else started.train_images
    placement = started.placement
    kept = f", keeps {started.kept}" if started.kept else ""
    compiled = ", compiled" if placement["compile"] else ""
    processes = f", {placement['processes']} processes" if placement["processes"] > 1 else ""
    return (f"{'resuming' if resumes else 'training'} {started.run.path}{after}: {started.model}, "
            f"{started.parameters:,} parameters{kept}, {images} + {started.val_images} images, "
            f"{placement['device']} {placement['precision']}{compiled}{processes}")  # fmt: skip


def epoch_line(report: EpochReport, epochs: int) -> str:
    """One line on an epoch."""
    row = report.row
    parts = [f"epoch {report.epoch}/{epochs}", f"loss {row['train_loss']:.4f}"]
    for key, value in row.items():
        if key.startswith("val_") and value is not None:
            name = "val" if key == "val_loss" else metric_name(key)
            parts.append(f"{name} {value:{'.2f' if key == 'val_psnr' else '.4f'}}")
    return "  ".join([*parts, f"best {report.best_loss:.4f}", f"{row['images_per_s']:.3g} img/s"])


def throughput_line(throughput: Throughput) -> str:
    """One line on how fast a command trained."""
    peak = throughput.peak_memory
    memory = f", peak memory {peak / 1e9:.2f} GB" if peak is not None else ""
    waiting = f"{throughput.data_wait_fraction:.1%} of the time waiting for data"
    return f"{throughput.images_per_s:.3g} images/s, {waiting}{memory}"


def _end_to_json(end: Finished | Interrupted) -> dict[str, Any]:
    if isinstance(end, Interrupted):
        run = str(end.run.path) if end.run else None
        return {"run": run, "interrupted": True, "epochs": end.epoch, "batches": end.batch}
    return {
        "run": str(end.run.path),
        "interrupted": False,
        "epochs": end.epochs,
        "best_epoch": end.best_epoch,
        "best": end.best,
        "stopped_early": end.stopped_early,
        "was_finished": end.was_finished,
        "pace": asdict(end.pace) if end.pace else None,
        "conversions": dict(end.conversions),
        "findings": [asdict(finding) for finding in end.findings],
    }


def print_finished(end: Finished) -> None:
    """Print the summary of a finished run."""
    run = end.run
    how = "was finished already" if end.was_finished else "stopped early" if end.stopped_early else "finished"
    epochs = "1 epoch" if end.epochs == 1 else f"{end.epochs} epochs"
    names = {"train_loss": "train loss", "val_loss": "validation loss"}
    names |= {key: metric_name(key) for key in end.best if key.startswith("val_") and key not in names}
    figures = ", ".join(f"{name} {end.best[key]:.4g}" for key, name in names.items() if end.best.get(key) is not None)
    lines = [f"{run.path} {how}: {epochs}, best epoch {end.best_epoch}", f"  {figures}"]
    if end.pace is not None:
        lines.append(f"  {throughput_line(end.pace)}")
    lines.append(f"  weights {run.model}, curves {run.curves.name}, pictures {run.preview(0).parent.name}/")
    lines += [f"  {finding.text}" for finding in end.findings]
    if end.was_finished:
        further = (
            "to continue, give a larger --patience" if end.stopped_early else "to continue, give a larger --epochs"
        )
        lines.append(f"  {further}; to begin again, --restart")
    for line in lines:
        console.print_line(line)


def _print_interrupted(end: Interrupted, restarts: bool) -> None:
    if end.run is None:
        console.show_error("interrupted before the first step; no run was begun")
    elif not end.is_saved:
        console.show_error(
            "interrupted; another process of this command ended before the run was saved\n"
            f"hint: run the same command again to continue from the last checkpoint in {end.run.path}"
        )
    else:
        where = f"epoch {end.epoch + 1}, step {end.batch}" if end.batch else f"epoch {end.epoch}"
        console.show_error(
            f"interrupted after {where}; the run is saved in {end.run.path}\n"
            f"hint: run the same command again{', without --restart,' if restarts else ''} to go on from there"
        )
