"""What long work tells whoever called it. The library reports; the caller decides what to show."""

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
    """One line that the user should see: something was skipped, chosen or replaced."""

    text: str


Listener = Callable[[Progress | Notice], None]


def ignore(_report: Progress | Notice) -> None:
    """The listener that shows nothing."""


StopRequest = Callable[[], bool]


class Stopped(Exception):  # noqa: N818 (no error: the caller asked for it)
    """The caller asked to stop."""


def never() -> bool:
    """The request of a caller who never asks to stop."""
    return False
