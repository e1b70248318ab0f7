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
    """Send SIGINT when a function of aecli begins, or a generator goes on, for the nth time in this thread.

    Yields the list of their names.
    """
    calls, names = count(1), []

    def watch(frame: FrameType, _event: str, _argument: object) -> None:
        if frame.f_code.co_filename.startswith(_OURS):
            names.append(frame.f_code.co_name)
            if next(calls) == number:
                signal.raise_signal(signal.SIGINT)

    sys.settrace(watch)
    try:
        yield names
    finally:
        sys.settrace(None)
