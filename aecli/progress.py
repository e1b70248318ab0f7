"""Progress reports and notices of long work: the library reports, the caller decides what to show."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of the work called `task` ("decoding", "measuring", …)."""

    task: str
    done: int
    total: int


@dataclass(frozen=True)
class Notice:
    """A line for the user: something was skipped, chosen or replaced."""

    text: str


Listener = Callable[[Progress | Notice], None]


def ignore(_report: Progress | Notice) -> None:
    """Listener that shows nothing."""


StopRequest = Callable[[], bool]


class Stopped(Exception):  # noqa: N818 (not an error: the caller asked for it)
    """The caller asked to stop."""


def never() -> bool:
    """Stop request of a caller that never stops the work."""
    return False
