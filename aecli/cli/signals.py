"""Ctrl-C and a polite kill: the first asks the work to save and end, the second ends it at once."""

import signal
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Within the `with` block, `stop()` says whether a signal came; a second signal takes its usual course."""

    def __init__(self) -> None:
        """Wait for the `with` block."""
        self.signal: int | None = None

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_exception: object) -> None:
        self._restore()

    def stop(self) -> bool:
        """Whether to stop."""
        return self.signal is not None

    @property
    def exit_status(self) -> int:
        """128 + the signal's number, as shells have it: 130 for Ctrl-C."""
        return 128 + (self.signal or signal.SIGINT)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
