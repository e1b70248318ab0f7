"""`aecli` in several processes that share its work, as torchrun starts them, but forked: many starts cost little."""

import os
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from pkgutil import resolve_name

from tests.support.processes import begin, end


def begin_ranks(
    place: Path, arguments: Sequence[str], size: int, attempt: int = 0, before: Callable[[], object] = int
) -> list[BaseProcess]:
    """Start `aecli` in `size` processes in the folder `place`; what they say is added to stdout.txt and stderr.txt."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [begin(place, arguments, partial(_as_rank, rank, size, port, attempt, before)) for rank in range(size)]


def _as_rank(rank: int, size: int, port: int, attempt: int, before: Callable[[], object]) -> None:
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RESTART_COUNT": str(attempt),
    }  # fmt: skip
    before()


def run_ranks(
    place: Path, arguments: Sequence[str], size: int, attempt: int = 0, before: Callable[[], object] = int
) -> tuple[list[int], str, str]:
    """Run `aecli` in `size` processes; their exit statuses, what was printed on stdout, and on stderr."""
    for name in ("stdout.txt", "stderr.txt"):
        (place / name).unlink(missing_ok=True)
    statuses = [end(process) for process in begin_ranks(place, arguments, size, attempt, before)]
    return statuses, (place / "stdout.txt").read_text(), (place / "stderr.txt").read_text()


def fail_ranks(place: Path, arguments: Sequence[str], size: int) -> str:
    """Run `aecli` in processes that must all fail, with one message of one or two lines; returns it."""
    statuses, stdout, stderr = run_ranks(place, arguments, size)
    assert 0 not in statuses and stdout == ""
    assert stderr.count("Error: ") == 1 and len(stderr.splitlines()) <= 2, stderr
    return stderr


def stall(rank: int, module: str, function: str) -> None:
    """Have `function` of `module` never return in the process of that rank, nor begin in the others before that.

    For `before` of `begin_ranks`; the file `stalled` says that it has begun.
    """
    owner = resolve_name(module)
    original = getattr(owner, function)

    def replacement(*arguments: object) -> object:
        if os.environ["RANK"] == str(rank):
            open("stalled", "w").close()
            time.sleep(600)
        while not os.path.exists("stalled"):
            time.sleep(0.02)
        return original(*arguments)

    setattr(owner, function, replacement)
