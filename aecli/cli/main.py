"""The process of a command: its streams, signals and exit status, set up before anything slow is imported."""

import atexit
import errno
import gc
import os
import re
import sys
import time
import warnings
from typing import Any, NoReturn, TextIO, cast

from aecli.cli.signals import StopRequest, leave
from aecli.cli.stand_ins import stand_ins
from aecli.runtime.launch import is_reporting_rank, launch

_SIGPIPE_STATUS = 128 + 13  # as shells report a process that writes to a closed pipe
_GRACE_SECONDS = 5.0  # torchrun ends all processes once one failed; the one that reports the error may be slower


def main() -> NoReturn:
    """Entry point of the `aecli` command."""
    stdout = _open_streams()
    with _Interruption():
        set_up_process()
        from aecli.cli.app import app

        try:
            app(prog_name="aecli")
        except SystemExit as end:
            _leave(end.code, stdout)
        _leave(0, stdout)


def set_up_process() -> None:
    """Change process-wide settings, before PyTorch is imported."""
    gc.set_threshold(100_000)  # importing PyTorch makes hundreds of thousands of objects, none of them garbage
    warnings.filterwarnings("ignore", module="PIL")  # about damaged metadata of readable images
    # GNU OpenMP's threads spin for milliseconds while they wait, and may take the core from the thread they wait for:
    # with one busy neighbour on two cores, a training step took 19 times as long as alone, with this 3 times.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    if launch().size > 1:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else each process warns of what is intended
    for name in ("COLUMNS", "LINES"):  # rich prints nothing at all at width 0
        if not re.fullmatch("[1-9][0-9]{0,3}", os.environ.get(name, "80")):
            del os.environ[name]


class _Stream:
    """A standard stream whose failure never ends the work: after a failed write, everything is dropped.

    A lost result is reported when the work is done. Of several processes of a command, only one writes. Characters that
    the encoding lacks have ASCII in their place.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._stand_ins = stand_ins(stream.encoding)
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        if not isinstance(text, str):  # after a failure too: Typer finds out so whether this takes text
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        self._attempt("write", text.translate(self._stand_ins) if self._stand_ins else text)
        return len(text)

    def flush(self) -> None:
        self._attempt("flush")

    def _attempt(self, method: str, *arguments: str) -> None:
        if self.failure is None and is_reporting_rank():
            try:
                getattr(self._stream, method)(*arguments)
            except OSError as error:
                self.failure = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _open_streams() -> _Stream:
    """Make stdout and stderr streams that never raise; return stdout."""
    if os.name == "posix":
        _fill_standard_descriptors()
    streams = []
    for stream in (sys.stdout, sys.stderr):
        if stream is None:  # it was closed
            stream = open(os.devnull, "w", encoding="utf-8")
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # file names may hold characters that a terminal can't show
        streams.append(_Stream(stream))
    sys.stdout, sys.stderr = (cast(TextIO, stream) for stream in streams)
    return streams[0]


def _fill_standard_descriptors() -> None:
    """Open closed descriptors; else the next file would get such a number, and output would be written into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number


class _Interruption(StopRequest):
    """The first signal ends the process: only training, which handles signals itself, has something to save.

    Not by an exception, which could be raised from any line, and makes PyTorch abort while it is being imported.
    """

    def _arrived(self, number: int) -> None:
        atomic_files = sys.modules.get("aecli.storage.atomic_files")  # may be half imported
        drop = getattr(atomic_files, "remove_own_temporary_files", None)
        if drop is not None:
            drop()
        leave(128 + number, "interrupted")


def _leave(code: str | int | None, stdout: _Stream) -> NoReturn:
    """End the process without Python's own finalization, which takes PyTorch's modules apart.

    `aecli models` takes 3.0 s of CPU time, and 4.3 s if Python ends it (minima of 8 runs on an AMD EPYC).
    """
    if isinstance(code, str):
        print(code, file=sys.stderr)
    status = 1 if isinstance(code, str) else code or 0
    stdout.flush()
    if stdout.failure is not None:
        is_unread = stdout.failure.errno == errno.EPIPE  # as by `| head -1`
        status = status or (_SIGPIPE_STATUS if is_unread else 1)
        if not is_unread:
            print(f"Error: the result can't be written to stdout: {stdout.failure.strerror}", file=sys.stderr)
    atexit._run_exitfuncs()
    if status in (1, 2) and launch().is_served and not is_reporting_rank():
        time.sleep(_GRACE_SECONDS)
    os._exit(status)
