"""`aecli` in a terminal of its own."""

import fcntl
import os
import pty
import select
import struct
import termios
from collections.abc import Iterator, Mapping
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.support.processes import begin

FORCING = ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "PY_COLORS", "GITHUB_ACTIONS")


def begin_in_terminal(place: Path, columns: int, arguments: list[str], **environment: str) -> tuple[BaseProcess, int]:
    """Start `aecli` in the folder `place`; the process, and our side of its terminal, once something is said there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = begin(place, arguments, partial(_attach, os.ttyname(theirs), environment))
    ready, _, _ = select.select([ours], [], [], 300)
    assert ready, "no output for five minutes"
    os.close(theirs)
    return process, ours


def _attach(terminal: str, environment: Mapping[str, str]) -> None:
    os.setsid()
    theirs = os.open(terminal, os.O_RDWR | os.O_NOCTTY)
    for number in range(3):
        os.dup2(theirs, number)
    os.close(theirs)
    for name in FORCING:
        os.environ.pop(name, None)
    os.environ |= {"TERM": "xterm-256color", **environment}


def output_of(terminal: int) -> Iterator[bytes]:
    """Yield the output, piece by piece, until the process has ended; then close the terminal."""
    try:
        while True:
            ready, _, _ = select.select([terminal], [], [], 300)
            assert ready, "no output for five minutes"
            try:
                piece = os.read(terminal, 65536)
            except OSError:  # as Linux reports the end
                return
            if not piece:
                return
            yield piece
    finally:
        os.close(terminal)
