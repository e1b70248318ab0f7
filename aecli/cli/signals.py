"""SIGINT, SIGTERM and SIGHUP: the first one asks the work to save and end, a second one ends the process at once."""

import os
import select
import signal
import threading
import time
from types import FrameType
from typing import NoReturn

from aecli.runtime.interrupts import is_echo
from aecli.runtime.launch import is_reporting_rank

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # not every system has the last
_NO_SIGNAL = b"\0"
_CLEAN_LINE = "\r\x1b[J\x1b[?25h"  # erases the bars and shows the cursor that they hide
_WRITE_TIMEOUT = 0.2  # seconds


class StopRequest:
    """In the `with` block, `stop()` returns whether a signal came; a second one ends the process at once.

    A thread waits for signals, because Python's handlers run in the main thread, which may be in a long step or a write
    that hangs. Signals that the process was started to ignore (by `nohup`) stay ignored.
    """

    def __init__(self) -> None:
        """Signals are handled in the `with` block only."""
        self.signal: int | None = None

    def __enter__(self) -> "StopRequest":
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._wakeup_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
        self._before = {
            number: signal.signal(number, _ignore_in_main_thread)
            for number in numbers
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        self._thread = threading.Thread(target=self._watch, name="aecli-signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.write(self._writing, _NO_SIGNAL)  # closing it is not enough: a forked child may hold it too
        self._thread.join()
        os.close(self._writing)
        os.close(self._reading)

    def stop(self) -> bool:
        """Return whether to stop."""
        return self.signal is not None

    @property
    def exit_status(self) -> int:
        """128 + the signal's number, as in shells: 130 for Ctrl-C."""
        return 128 + (self.signal or signal.SIGINT)

    def _watch(self) -> None:
        while number := os.read(self._reading, 1)[0]:
            if number in self._before:
                self._arrived(number)

    def _arrived(self, number: int) -> None:
        if self.signal is None:
            self.signal, self._first_at = number, time.monotonic()
        elif not is_echo(self._first_at):
            leave(128 + number, "interrupted at once; what was saved before is kept")


def _ignore_in_main_thread(_number: int, _frame: FrameType | None) -> None:
    """Do nothing; with a handler set, Python writes the signal's number into the pipe."""


def leave(status: int, message: str) -> NoReturn:
    """End the process at once, from any thread, with an error message.

    `os._exit`, because an exception would only end this thread, while the main thread may be in a long step.
    """
    try:
        if is_reporting_rank() and (os.name != "posix" or select.select([], [2], [], _WRITE_TIMEOUT)[1]):
            os.write(2, f"{_CLEAN_LINE if os.isatty(2) else ''}Error: {message}\n".encode())
    finally:
        os._exit(status)


def _forget_signals() -> None:
    """Restore default handling in a forked child, which would otherwise write its signals into its parent's pipe."""
    for name in _NAMES:
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is _ignore_in_main_thread:
            signal.set_wakeup_fd(-1)
            signal.signal(getattr(signal, name), signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_signals)
