"""Training as it is seen: two bars on a terminal, now and then a line elsewhere, a summary on stdout at the end."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import typer
from rich.console import RenderableType
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from aecli.cli import console
from aecli.cli.signals import StopRequest
from aecli.cli.sparkline import SPARKS, can_show, sparkline
from aecli.configs import TrainConfig
from aecli.errors import printable
from aecli.progress import Notice, Progress
from aecli.training.events import EpochReport, Finished, Interrupted, Started, StepReport, Throughput, TrainReport
from aecli.training.loop import train


def show_training(config: TrainConfig, as_json: bool, quiet: bool) -> None:
    """Train, show it, and leave with status 130 (or 143) if a signal ended it."""
    with StopRequest() as request:
        end: Finished | Interrupted | None = None
        with _view(quiet) as show:
            for report in train(config, request.stop):
                if isinstance(report, Finished | Interrupted):
                    end = report
                else:
                    show(report)
    if as_json and end is not None:
        console.print_json(_end_to_json(end))
    if isinstance(end, Finished) and not as_json:
        _print_finished(end)
    if isinstance(end, Interrupted):
        _tell_interrupted(end, config.run.restart)
        raise typer.Exit(request.exit_status)


@contextmanager
def _view(quiet: bool) -> Iterator["_Quiet | _PlainView | _BarView"]:
    terminal = console.stderr()
    if quiet:
        yield _Quiet()
    elif not terminal.is_terminal:
        yield _PlainView()
    else:
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[info]}"))
        with _Bars(*columns, console=terminal, transient=True, expand=True) as bars:
            yield _BarView(bars)


class _Bars(Bars):
    """Bars with a line below them."""

    line = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars and, once there is one, the line."""
        yield from super().get_renderables()
        if self.line:
            yield Text(self.line, no_wrap=True, overflow="ellipsis")


class _Quiet:
    def __call__(self, report: TrainReport) -> None:
        """Show nothing."""


class _Pace:
    """Estimates the time left from the epochs that this command has done, or from the steps of its first."""

    def __init__(self, started: Started) -> None:
        self._started = started
        self._began = time.monotonic()

    def left(self, epoch: int, batch: int) -> str:
        """Words for the time left after `epoch` finished epochs and `batch` batches of the next."""
        before = self._started.epochs_done + self._started.batches_done / self._started.batches
        done = epoch + batch / self._started.batches - before
        remaining = self._started.epochs - epoch - batch / self._started.batches
        if done <= 0:
            return "–"
        return duration((time.monotonic() - self._began) / done * remaining)


class _BarView:
    """Two bars: epochs with the best loss and the time left, and the steps of the epoch under way."""

    def __init__(self, bars: "_Bars") -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._pace: _Pace | None = None
        self._best = ""
        self._val_losses: list[float] = []

    def __call__(self, report: TrainReport) -> None:
        if isinstance(report, Notice):
            self._bars.console.print(console.notice(report.text), soft_wrap=True)
        elif isinstance(report, Progress):
            self._update(report.task, report.done, report.total, "")
        elif isinstance(report, Started):
            self._bars.console.print(printable(started_line(report)), soft_wrap=True)
            for task in list(self._tasks.values()):
                self._bars.remove_task(task)
            self._tasks.clear()
            self._pace = _Pace(report)
            self._total = report.epochs
            self._val_losses = list(report.val_losses)
            self._draw_losses()
            self._update("epoch", report.epochs_done, report.epochs, "")
        elif isinstance(report, StepReport):
            assert self._pace is not None
            self._update("epoch", report.epoch - 1, self._total, self._epoch_info(report.epoch - 1, report.batch))
            info = f"loss {report.loss:.4f}  lr {report.lr:.1e}  {report.images_per_s:.3g} img/s"
            self._update("step", report.batch, report.batches, info)
        elif isinstance(report, EpochReport):
            psnr = report.best["val_psnr"]
            self._best = f"best {report.best_loss:.4f}" + (f" ({psnr:.2f} dB)" if psnr is not None else "")
            self._update("epoch", report.epoch, self._total, self._epoch_info(report.epoch, 0))
            if (loss := report.row["val_loss"]) is not None:
                self._val_losses.append(loss)
                self._draw_losses()

    def _draw_losses(self) -> None:
        """A line below the bars: the validation loss from the first epoch to the last, where there is room for it."""
        terminal = self._bars.console
        line = sparkline(self._val_losses, SPARKS)
        if line and terminal.width >= console.LEAST_BAR and can_show(line, terminal.encoding):
            self._bars.line = f"val loss {line} {self._val_losses[-1]:.4f}"

    def _epoch_info(self, epoch: int, batch: int) -> str:
        assert self._pace is not None
        return f"{self._best}  {self._pace.left(epoch, batch)} left".strip()

    def _update(self, name: str, done: int, total: int, info: str) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, info="")
        description = f"{name:5} {done:>{len(str(total))}}/{total}"
        self._bars.update(self._tasks[name], description=description, completed=done, total=total, info=info)


class _PlainView:
    """Lines for a log file: the first epoch, the last, and between them one now and then."""

    def __init__(self) -> None:
        self._said_at = time.monotonic()
        self._pace: _Pace | None = None
        self._started: Started | None = None

    def __call__(self, report: TrainReport) -> None:
        due = time.monotonic() - self._said_at > console.PLAIN_SECONDS
        if isinstance(report, Notice):
            console.show_notice(report.text)
        elif isinstance(report, Started):
            self._started, self._pace = report, _Pace(report)
            self._say(started_line(report))
        elif isinstance(report, Progress) and due:
            self._say(f"{report.task} {report.done}/{report.total}")
        elif isinstance(report, StepReport) and due:
            self._say(f"epoch {report.epoch}  step {report.batch}/{report.batches}  loss {report.loss:.4f}  "
                      f"lr {report.lr:.1e}  {report.images_per_s:.3g} img/s")  # fmt: skip
        elif isinstance(report, EpochReport) and self._started and self._pace:
            if due or report.epoch in (self._started.epochs_done + 1, self._started.epochs):
                self._say(f"{epoch_line(report, self._started.epochs)}  {self._pace.left(report.epoch, 0)} left")

    def _say(self, line: str) -> None:
        console.stderr().print(printable(line), soft_wrap=True)
        self._said_at = time.monotonic()


def started_line(started: Started) -> str:
    """One line on what is about to be trained."""
    resumes = started.epochs_done or started.batches_done
    verb = "resuming" if resumes else "training"
    step = f", step {started.batches_done}" if started.batches_done else ""
    after = f" after epoch {started.epochs_done}{step}" if resumes else ""
    compiled = ", compiled" if started.placement["compile"] else ""
    together = f", {started.placement['processes']} processes" if started.placement["processes"] > 1 else ""
    return (f"{verb} {started.run.path}{after}: {started.model}, {started.parameters:,} parameters, "
            f"{'a stream' if started.train_images is None else started.train_images} + {started.val_images} images, "
            f"{started.placement['device']} {started.placement['precision']}{compiled}{together}")  # fmt: skip


def epoch_line(report: EpochReport, epochs: int) -> str:
    """One line on an epoch."""
    row = report.row
    parts = [f"epoch {report.epoch}/{epochs}", f"loss {row['train_loss']:.4f}"]
    for key, name, form in (("val_loss", "val", ".4f"), ("val_psnr", "PSNR", ".2f"), ("val_ssim", "SSIM", ".4f")):
        if row[key] is not None:
            parts.append(f"{name} {row[key]:{form}}")
    return "  ".join([*parts, f"best {report.best_loss:.4f}", f"{row['images_per_s']:.3g} img/s"])


def pace_line(pace: Throughput) -> str:
    """One line on how fast a command trained."""
    memory = f", peak memory {pace.peak_memory / 1e9:.2f} GB" if pace.peak_memory is not None else ""
    return f"{pace.images_per_s:.3g} images/s, {pace.data_wait_fraction:.1%} of the time waiting for data{memory}"


def duration(seconds: float) -> str:
    """`12 s`, `3 min`, `2 h 05 min`, `4 d 3 h`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def _end_to_json(end: Finished | Interrupted) -> dict[str, Any]:
    if isinstance(end, Interrupted):
        return {
            "run": str(end.run.path) if end.run else None,
            "interrupted": True,
            "epochs": end.epoch,
            "batches": end.batch,
        }
    return {
        "run": str(end.run.path),
        "interrupted": False,
        "epochs": end.epochs,
        "best_epoch": end.best_epoch,
        "best": end.best,
        "stopped_early": end.stopped_early,
        "was_finished": end.was_finished,
        "pace": asdict(end.pace) if end.pace else None,
    }


def _print_finished(end: Finished) -> None:
    path = end.run.path
    how = "was finished already" if end.was_finished else "stopped early" if end.stopped_early else "finished"
    epochs = "1 epoch" if end.epochs == 1 else f"{end.epochs} epochs"
    console.print_line(f"{path} {how}: {epochs}, the best is epoch {end.best_epoch}")
    names = {"train_loss": "train loss", "val_loss": "validation loss", "val_psnr": "PSNR", "val_ssim": "SSIM"}
    figures = [f"{name} {end.best[key]:.4g}" for key, name in names.items() if end.best.get(key) is not None]
    console.print_line("  " + ", ".join(figures))
    if end.pace is not None:
        console.print_line(f"  {pace_line(end.pace)}")
    console.print_line(
        f"  weights {end.run.model}, curves {end.run.curves.name}, pictures {end.run.preview(0).parent.name}/"
    )
    if end.best.get("val_loss") is not None and end.epochs >= 2 * max(end.best_epoch, 10):
        console.print_line(f"  validation loss has not improved since epoch {end.best_epoch}; more images would help")
    if end.was_finished:
        further = "another --patience begins a new run" if end.stopped_early else "to go on, give a larger --epochs"
        console.print_line(f"  {further}; to begin again, --restart")


def _tell_interrupted(end: Interrupted, restarts: bool) -> None:
    if end.run is None:
        console.show_error("interrupted before the first step; nothing was begun")
        return
    if not end.is_saved:
        console.show_error(
            "interrupted, and another of the processes that share this work ended before all was saved\n"
            f"the last checkpoint in {end.run.path} is kept; run the same command again to go on"
        )
        return
    where = f"epoch {end.epoch + 1}, step {end.batch}" if end.batch else f"epoch {end.epoch}"
    console.show_error(
        f"interrupted after {where}; all of it is saved in {end.run.path}\n"
        f"run the same command again{', without --restart,' if restarts else ''} to go on from there"
    )
