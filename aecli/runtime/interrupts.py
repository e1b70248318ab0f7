"""Ctrl-C in Python code, held back until work is whole."""

import signal
import threading
import time
from types import FrameType

from aecli.runtime.launch import launch

_ECHO_SECONDS, _ECHO_SECONDS_OF_TORCHRUN = 0.5, 5.0


def is_echo(first_at: float) -> bool:
    """Whether a signal that comes now is still the one that came at `first_at`, on the monotonic clock.

    One Ctrl-C or logout may arrive twice: from the terminal and from a parent process (torchrun forwards it later).
    """
    return time.monotonic() - first_at <= (_ECHO_SECONDS if launch().size == 1 else _ECHO_SECONDS_OF_TORCHRUN)


class HeldInterrupts:
    """In the `with` block, Ctrl-C is only noted; the end of the block raises its KeyboardInterrupt.

    A second Ctrl-C raises it at once. Only Python's own handler is replaced, in the main thread, where Python runs
    handlers; another one stays, and what it raises comes at any line.
    """

    def __init__(self) -> None:
        """Hold nothing yet; the same object may be entered again and again."""
        self._noted_at: float | None = None
        self._is_held = False

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._is_held = signal.getsignal(signal.SIGINT) is signal.default_int_handler
            if self._is_held:
                signal.signal(signal.SIGINT, self._note)

    def __exit__(self, kind: type[BaseException] | None, _error: object, _at: object) -> None:
        if self._is_held:
            self._is_held = False
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self.is_pending:
            self._noted_at = None
            if kind is not KeyboardInterrupt:
                raise KeyboardInterrupt

    @property
    def is_pending(self) -> bool:
        """Whether a Ctrl-C is held back."""
        return self._noted_at is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._noted_at is None:
            self._noted_at = time.monotonic()
        elif not is_echo(self._noted_at):
            signal.default_int_handler(number, frame)
