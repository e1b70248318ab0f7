"""Ctrl-C at a chosen place of aecli's Python code, in this process."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import FrameType

import aecli

_OURS = str(Path(aecli.__file__).parent)


@contextmanager
def interrupted_at(number: int) -> Iterator[list[str]]:
    """Send SIGINT when a function of aecli begins or ends for the nth time, in this thread.

    Yields the list of those that began or ended.
    """
    calls, events = count(1), []

    def watch(frame: FrameType, event: str, _argument: object) -> None:
        if event in ("call", "return") and frame.f_code.co_filename.startswith(_OURS):
            events.append(frame.f_code.co_name)
            if next(calls) == number:
                signal.raise_signal(signal.SIGINT)

    sys.setprofile(watch)
    try:
        yield events
    finally:
        sys.setprofile(None)
