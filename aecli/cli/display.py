"""Progress on stderr: bars on a terminal, occasional lines elsewhere, nothing when quiet."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import RenderableType
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from aecli.cli import console
from aecli.cli.stand_ins import has
from aecli.errors import printable
from aecli.progress import Notice, Progress

LOG_SECONDS = 10.0  # without a terminal, at least this long between two lines of progress
WIDE = 60  # columns that a bar and the text beside it need


@dataclass(frozen=True)
class Bar:
    """`done` of `total`; `info` stands beside the bar, by default the time left."""

    name: str
    done: int
    total: int
    info: str | None = None


class Display:
    """Shows nothing; the base of those that do. It is a `Listener`."""

    def __call__(self, report: Progress | Notice) -> None:
        """Show what long work reports."""
        if isinstance(report, Notice):
            self.print(console.notice(report.text))
        else:
            bar = Bar(report.task, report.done, report.total)
            self.update([bar], f"{bar.name} {bar.done}/{bar.total}")

    def print(self, line: Text) -> None:
        """Print a line that stays."""

    def update(self, bars: Sequence[Bar], line: str, always: bool = False) -> None:
        """Update the bars; in a log print `line` instead, where the last one is old enough, or `always`."""

    def clear(self) -> None:
        """Remove all bars."""

    def set_footer(self, text: str) -> None:
        """Show a line below the bars, where there is room for it."""


class _Log(Display):
    """Lines for a log file."""

    def __init__(self) -> None:
        self._printed_at = time.monotonic()

    def print(self, line: Text) -> None:
        console.stderr().print(line, soft_wrap=True)
        self._printed_at = time.monotonic()

    def update(self, bars: Sequence[Bar], line: str, always: bool = False) -> None:
        if line and (always or time.monotonic() - self._printed_at > LOG_SECONDS):
            self.print(Text(printable(line)))


class _Bars(Display):
    """A bar per name; on a narrow terminal text alone, with what may be cut at its end."""

    def __init__(self, progress: "_ProgressWithFooter") -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._is_wide = progress.console.width >= WIDE

    def print(self, line: Text) -> None:
        self._progress.console.print(line, soft_wrap=True)

    def update(self, bars: Sequence[Bar], line: str, always: bool = False) -> None:
        for bar in bars:
            if bar.name not in self._tasks:
                self._tasks[bar.name] = self._progress.add_task(bar.name, info=None)
            count = f"{bar.done:>{len(str(bar.total))}}/{bar.total}"
            text = f"{bar.name:5} {count}" if self._is_wide else f"{count} {bar.name} {bar.info or ''}"
            task = self._tasks[bar.name]
            self._progress.update(task, total=bar.total, completed=bar.done, description=text, info=bar.info)

    def clear(self) -> None:
        for task in self._tasks.values():
            self._progress.remove_task(task)
        self._tasks.clear()

    def set_footer(self, text: str) -> None:
        if self._is_wide:
            self._progress.footer = text


class _ProgressWithFooter(RichProgress):
    footer = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.footer:
            yield Text(self.footer, no_wrap=True, overflow="ellipsis")


class _Info(ProgressColumn):
    def render(self, task: Task) -> Text:
        info = task.fields["info"]
        if info is None and task.time_remaining is not None:
            info = f"{duration(task.time_remaining)} left"
        return Text(info or "")


@contextmanager
def open_display(quiet: bool) -> Iterator[Display]:
    """Yield the display that fits stderr."""
    terminal = console.stderr()
    if quiet:
        yield Display()
    elif not terminal.is_terminal or terminal.is_dumb_terminal:
        yield _Log()
    else:
        cut = Column(no_wrap=True, overflow="ellipsis" if has(terminal.encoding, "…") else "crop")
        columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False, table_column=cut)]
        if terminal.width >= WIDE:
            columns += [BarColumn(bar_width=None), _Info(Column(no_wrap=True))]
        with _ProgressWithFooter(*columns, console=terminal, transient=True, expand=True) as progress:
            yield _Bars(progress)


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
