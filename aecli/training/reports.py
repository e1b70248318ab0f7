"""The iterator of a run's reports: whatever ends it, the run is saved where it is, and the folder free."""

import atexit
from collections.abc import Callable, Generator
from contextlib import suppress
from inspect import GEN_RUNNING, getgeneratorstate
from weakref import WeakSet

from aecli.progress import Stopped, StopRequest
from aecli.runtime.interrupts import HeldInterrupts
from aecli.runtime.launch import launch
from aecli.training.events import TrainReport

Reports = Generator[TrainReport, None, None]
_open: "WeakSet[Reports]" = WeakSet()


class Left(Stopped):
    """The caller takes no further reports, and is not kept waiting for pictures, which a resumed run draws anew."""


def saved_at_its_end(begin: Callable[[StopRequest], Reports], should_stop: StopRequest) -> Reports:
    """Return the reports of `begin`, which is given when to stop, as an iterator that may be left at any of them.

    Between two of them the work is whole. So when the iterator is closed, dropped or thrown into, or the interpreter
    ends, the work gets a Left there, to save itself. Ctrl-C while it is at work is held back, asks it to stop, and is
    raised when it has. Any other exception at work, from a signal handler of the caller say, may come in the middle of
    a step: what is torn is not saved, and the last checkpoint stays.
    """
    reports = _reports(begin, should_stop)
    _open.add(reports)
    return reports


def _reports(begin: Callable[[StopRequest], Reports], should_stop: StopRequest) -> Reports:
    interrupts, has_left = HeldInterrupts(), False
    work = begin(lambda: has_left or interrupts.is_pending or should_stop())
    try:
        while True:
            with interrupts:
                report = next(work, None)
            if report is None:
                return
            yield report
    finally:  # `work` waits at a report, or has ended
        with interrupts:
            has_left = True
            if launch().size == 1:
                with suppress(Stopped, StopIteration):
                    work.throw(Left())
            else:  # all processes save after the same step, the next one that they synchronise at
                for _ in work:
                    pass
            work.close()


@atexit.register
def _close_all() -> None:
    """Close what scripts leave open, before the interpreter takes modules apart."""
    for reports in tuple(_open):
        if getgeneratorstate(reports) != GEN_RUNNING:  # else in a daemon thread, which ends here
            reports.close()
