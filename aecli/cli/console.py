"""What the user sees: results on stdout, the rest on stderr. This file and live.py alone know rich."""

import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from aecli.errors import printable
from aecli.progress import Listener, Notice, Progress, ignore

if TYPE_CHECKING:
    from aecli.evaluation.paired import EvalReport
    from aecli.evaluation.sets import SetReport
    from aecli.runs.catalogue import ModelsReport

PLAIN_SECONDS = 10.0  # without a terminal, a line of progress at most this often
_GAP = 2  # blanks after a column
LEAST_BAR = 60  # columns of a terminal in which a bar and all that stands beside it have room
_LEAST_TEXT = 10  # columns of a terminal in which text can be read


def stdout() -> Console:
    """The console for results."""
    return Console(highlight=False, markup=False, emoji=False)


def stderr() -> Console:
    """The console for progress, notices and errors."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def brief(text: str) -> str:
    """Return `text` printable, without the middle of words that no place to find things is as long as."""
    return re.sub(r"(\S{600})\S{400,}(\S{100})", r"\1…\2", printable(text, line_ends=True))


def show_error(message: str) -> None:
    """Print a failure to stderr."""
    stderr().print(Text.assemble(("Error: ", "bold red"), brief(message)), soft_wrap=True)


def notice(message: str) -> Text:
    """A line worth knowing."""
    return Text.assemble(("Note: ", "yellow"), brief(message))


def show_notice(message: str) -> None:
    """Print a line worth knowing to stderr."""
    stderr().print(notice(message), soft_wrap=True)


def print_line(text: str) -> None:
    """Print one line of result to stdout, never wrapped."""
    stdout().print(printable(text), soft_wrap=True)


def print_json(value: Any) -> None:
    """Print one strict JSON document to stdout."""
    print(json.dumps(value, indent=2, allow_nan=False))


@contextmanager
def listener(quiet: bool) -> Iterator[Listener]:
    """Yield a listener that shows a bar on a terminal, now and then a line elsewhere, and nothing when `quiet`."""
    if quiet:
        yield ignore
        return
    console = stderr()
    if not console.is_terminal:
        yield _PlainProgress()
        return
    columns: tuple[ProgressColumn, ...] = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    if console.width < LEAST_BAR:
        columns = (TextColumn("{task.completed:.0f}/{task.total:.0f} {task.description}"),)  # what is cut is at the end
    with Bars(*columns, console=console, transient=True) as bars:
        yield _BarProgress(bars)


class _BarProgress:
    """One bar a task, gone when all is done."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, report: Progress | Notice) -> None:
        if isinstance(report, Notice):
            self._bars.console.print(notice(report.text), soft_wrap=True)
            return
        if report.task not in self._tasks:
            self._tasks[report.task] = self._bars.add_task(report.task, total=report.total)
        self._bars.update(self._tasks[report.task], completed=report.done, total=report.total)


class _PlainProgress:
    """Lines for a log file."""

    def __init__(self) -> None:
        self._said_at = time.monotonic()

    def __call__(self, report: Progress | Notice) -> None:
        if isinstance(report, Notice):
            show_notice(report.text)
        elif time.monotonic() - self._said_at > PLAIN_SECONDS:
            self._said_at = time.monotonic()
            stderr().print(f"{report.task} {report.done}/{report.total}", soft_wrap=True)


def _print_table(headings: Sequence[tuple[str, str]], rows: Sequence[Sequence[str | Text]]) -> None:
    """Print a light table; each heading with the side that its column keeps to: numbers to the right.

    On a terminal too narrow for it text is folded; numbers never are, so that none can be read as another one: where
    they don't fit, the terminal breaks the lines.
    """
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    least = widest = 0
    for column, (heading, side) in enumerate(headings):
        width = max(cell_len(str(cell)) for cell in (heading, *(row[column] for row in rows)))
        widest += width + _GAP
        if side == "right":
            least += width + _GAP
            table.add_column(Text(heading), justify="right", no_wrap=True)
        else:
            least += min(width, _LEAST_TEXT) + _GAP
            table.add_column(Text(heading), overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = stdout()
    console.width = max(least, min(widest, console.width)) if console.is_terminal else widest
    console.print(table)


def print_evaluation(report: "EvalReport") -> None:
    """Print the table of metrics, pairs of predictions compared, and the definitions that the numbers stand on."""
    from aecli.evaluation.report import best_names

    console = stdout()
    best = {metric.name: best_names(report, metric) for metric in report.metrics} if len(report.results) > 1 else {}
    rows: list[list[str | Text]] = []
    for result in report.results:
        cells, intervals = [], []
        for metric in report.metrics:
            score = result.scores[metric.name]
            mark = "*" if result.name in best.get(metric.name, ()) else " "
            mean = "identical" if score.mean is None else metric.format(score.mean)
            cells.append(Text(mean + mark, style="bold" if mark == "*" else ""))
            intervals.append(Text(f"{metric.format_interval(score.ci95)} ", style="dim"))
        rows += [[Text(printable(result.name)), *cells], ["", *intervals]]
    _print_table([("", "left"), *((metric.title, "right") for metric in report.metrics)], rows)
    images = f"{report.n} image{'s' if report.n != 1 else ''}"
    console.print(
        f"{images}; means with 95 % intervals below them{'; * best' if len(report.results) > 1 else ''}", soft_wrap=True
    )
    for result in report.results:
        if identical := next((score.identical for score in result.scores.values() if score.identical), None):
            console.print(f"{printable(result.name)}: {identical} identical, left out of the mean PSNR", soft_wrap=True)
    for versus in report.comparisons:
        console.print()
        console.print(f"{printable(versus.a)} - {printable(versus.b)}, image by image:", soft_wrap=True)
        for metric in report.metrics:
            comparison = versus.comparisons[metric.name]
            difference = metric.format_difference(comparison.mean_difference)
            interval = metric.format_interval(comparison.ci95)
            wins = f"better on {comparison.wins_a}, worse on {comparison.wins_b}, equal on {comparison.ties}"
            console.print(f"  {metric.title:7} {difference:>8} {interval}  {wins}", soft_wrap=True)
    console.print()
    for name, definition in report.definitions.items():
        console.print(Text(f"{name}: {printable(definition)}", style="dim"), soft_wrap=not console.is_terminal)


def print_sets(report: "SetReport") -> None:
    """Print the table of distances between sets, and the definitions that the numbers stand on."""
    console = stdout()
    headings = [("", "left"), (f"{report.kernel_name} ↓", "right"), (f"{report.frechet_name} ↓", "right")]
    headings += [(word, "right") for word in ("prec.", "recall", "dens.", "cover.")]
    has_train = any(result.memorised for result in report.results)
    if has_train:
        headings.append(("nearest", "right"))
    rows: list[list[str | Text]] = []
    for result in report.results:
        found = result.manifold
        shares = (found.precision, found.recall, found.density, found.coverage)
        cells = [f"{result.kernel_distance:.4f}", f"{result.frechet_distance:.2f}", *(f"{each:.3f}" for each in shares)]
        interval = f"[{result.ci95[0]:.4f}, {result.ci95[1]:.4f}]"
        last = [_number(result.memorised.ratio if result.memorised else None, 3)] if has_train else []
        rows.append([Text(printable(result.name)), *cells, *last])
        rows.append(["", Text(interval, style="dim"), *[""] * (len(headings) - 2)])
    _print_table(headings, rows)
    counts = ", ".join(f"{printable(result.name)} {result.n:,}" for result in report.results)
    console.print(f"{report.n:,} real images, {counts}; 95 % intervals", soft_wrap=True)
    console.print()
    for name, definition in report.definitions.items():
        console.print(Text(f"{name}: {printable(definition)}", style="dim"), soft_wrap=not console.is_terminal)


def print_models(report: "ModelsReport") -> None:
    """Print the registry, the runs and the machine."""
    console = stdout()
    headings = [("model", "left"), ("parameters", "right"), ("latent", "right"),
                (f"GFLOP at {report.image_size}²", "right"), ("class", "left")]  # fmt: skip
    rows: list[list[str | Text]] = []
    for model in report.models:
        if model.error:
            rows.append([Text(printable(model.name)), "", "", "", Text(printable(model.error))])
        else:
            latent = "×".join(map(str, model.latent_shape or ()))
            figures = [f"{model.parameters:,}", latent, f"{model.gflop:.1f}"]
            rows.append([Text(printable(model.name)), *figures, Text(printable(model.target))])
    _print_table(headings, rows)
    console.print()
    if report.runs:
        headings = [("run", "left"), ("model", "left"), ("image", "right"), ("epochs", "right"), ("best", "right"),
                    ("PSNR ↑", "right"), ("SSIM ↑", "right"), ("touched", "right")]  # fmt: skip
        runs: list[list[str | Text]] = [
            [Text(printable(run.path)), Text(printable(run.model)), f"{run.image_size}²", str(run.epochs),
             _number(run.best_epoch, 0), _number(run.val_psnr, 2), _number(run.val_ssim, 4), _ago(run.touched)]
            for run in report.runs
        ]  # fmt: skip
        _print_table(headings, runs)
        for run in report.runs:
            if run.error:
                console.print(printable(run.error), soft_wrap=True)
        console.print()
    for what, how in (("training", report.training), ("all else", report.inference)):
        console.print(
            f"{what} here runs on {how['device']} in {how['precision']}, {how['memory_format']}", soft_wrap=True
        )


def _ago(moment: str) -> str:
    """How long ago an ISO 8601 moment was, or from two days on its date."""
    then = datetime.fromisoformat(moment)
    seconds = (datetime.now(then.tzinfo) - then).total_seconds()
    if not 0 <= seconds < 2 * 86400:
        return then.strftime("%Y-%m-%d")
    if seconds < 60:
        return "just now"
    return f"{seconds // 60:.0f} min ago" if seconds < 2 * 3600 else f"{seconds // 3600:.0f} h ago"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
