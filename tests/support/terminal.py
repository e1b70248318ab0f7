"""`aecli` in a terminal of its own."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

FORCING = ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "PY_COLORS", "GITHUB_ACTIONS")


def begin_in_terminal(
    place: Path, columns: int, arguments: list[str], **environment: str
) -> tuple[subprocess.Popen[bytes], int]:
    """Start `aecli` in the folder `place`; the process, and our side of its terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    kept = {key: value for key, value in os.environ.items() if key not in FORCING}
    process = subprocess.Popen(
        [sys.executable, "-m", "aecli", *arguments], cwd=place, stdin=theirs, stdout=theirs, stderr=theirs,
        env={**kept, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1", **environment}, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    return process, ours


def output_of(terminal: int) -> Iterator[bytes]:
    """Yield the output, piece by piece, until the process has ended; then close the terminal."""
    try:
        while True:
            ready, _, _ = select.select([terminal], [], [], 60)
            assert ready, "no output for a minute"
            try:
                piece = os.read(terminal, 65536)
            except OSError:  # as Linux reports the end
                return
            if not piece:
                return
            yield piece
    finally:
        os.close(terminal)
