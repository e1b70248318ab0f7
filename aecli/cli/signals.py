"""Ctrl-C, a polite kill, a terminal that goes: the first asks the work to save and end, the second ends it at once."""

import os
import select
import signal
import threading
import time
from types import FrameType
from typing import NoReturn

from aecli.runtime.launch import is_reporting_rank, launch

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # not every system has the last
_NO_SIGNAL = b"\0"
_CLEAN_LINE = "\r\x1b[J\x1b[?25h"  # behind a bar that is left standing, with the cursor that it hides
_PATIENCE = 0.2  # seconds with a terminal or pipe that takes nothing
# One Ctrl-C, or one logout, may come twice: from the terminal, and passed on by a parent (torchrun takes its time).
_ECHO_SECONDS, _ECHO_SECONDS_OF_TORCHRUN = 0.5, 5.0


class StopRequest:
    """Within the `with` block, `stop()` says whether a signal came; a second one ends the process there and then.

    Signals are noticed by a thread: Python's own handlers wait for the main thread, which may be in a step of many
    seconds or in a write that hangs. What the process was started to ignore (as `nohup` does) stays ignored.
    """

    def __init__(self) -> None:
        """Wait for the `with` block."""
        self.signal: int | None = None

    def __enter__(self) -> "StopRequest":
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._wakeup_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
        self._before = {
            number: signal.signal(number, _leave_to_the_thread)
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
        os.write(self._writing, _NO_SIGNAL)  # closing it would not do: a forked child may have it too
        self._thread.join()
        os.close(self._writing)
        os.close(self._reading)

    def stop(self) -> bool:
        """Whether to stop."""
        return self.signal is not None

    @property
    def exit_status(self) -> int:
        """128 + the signal's number, as shells have it: 130 for Ctrl-C."""
        return 128 + (self.signal or signal.SIGINT)

    def _watch(self) -> None:
        while number := os.read(self._reading, 1)[0]:
            if number in self._before:
                self._arrived(number)

    def _arrived(self, number: int) -> None:
        if self.signal is None:
            self.signal, self._first_at = number, time.monotonic()
        elif time.monotonic() - self._first_at > (_ECHO_SECONDS if launch().size == 1 else _ECHO_SECONDS_OF_TORCHRUN):
            leave(128 + number, "interrupted at once; what was saved before that is kept")


def _leave_to_the_thread(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: that there is a handler is what writes the number into the pipe."""


def leave(status: int, said: str) -> NoReturn:
    """End the process here and now, from whatever thread, and say so.

    `os._exit`, because an exception would only end this thread, while the main thread may be in a step of many seconds.
    """
    try:
        if is_reporting_rank() and (os.name != "posix" or select.select([], [2], [], _PATIENCE)[1]):
            os.write(2, f"{_CLEAN_LINE if os.isatty(2) else ''}Error: {said}\n".encode())
    finally:
        os._exit(status)


def _forget_signals() -> None:
    """Have a forked child, which shares the pipe, end by its own signals and not tell its parent of them."""
    for name in _NAMES:
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is _leave_to_the_thread:
            signal.set_wakeup_fd(-1)
            signal.signal(getattr(signal, name), signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_signals)
