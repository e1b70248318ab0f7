"""A signal at any moment ends a command in one line, with nothing half done; of training see tests/cli/test_signals.py.

`pytest -m soak tests/soak/test_interruptions.py -s` sends 400.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from aecli.errors import OutputError
from aecli.storage import atomic_files
from aecli.storage.atomic_files import OWN_PREFIX, atomic_write
from tests.support.processes import begin, end
from tests.support.trained import JOBS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


def interrupt(place: Path, args: Sequence[str], number: int, seconds: float) -> tuple[int, str, float]:
    """Start `aecli`, send it a signal after a while: its status, what it said, and how long it then took to end."""
    started = subprocess.Popen(
        [sys.executable, "-m", "aecli", *args], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    time.sleep(seconds)
    began = time.monotonic()
    started.send_signal(number)
    _, said = started.communicate(timeout=60)
    return started.returncode, said, time.monotonic() - began


def interrupt_many(place: Path, count: int, seed: int) -> dict[int, int]:
    """Interrupt commands at random moments, imports included; how often each status came."""
    chance = random.Random(seed)
    statuses: dict[int, int] = {}
    commands = {
        **{name: args for name, args in JOBS.items() if name != "train"},
        "sample": ["sample", "--model", "vae", "--n", "200", "--out", "samples"],
        "reconstruct": ["reconstruct", "--model", "vae", "--split", "all", "--batch-size", "1", "--out", "out",
                        "--overwrite"],
    }  # fmt: skip
    for index in range(count):
        name = chance.choice(list(commands))
        number = chance.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
        seconds = chance.uniform(0.2, 2.5)  # Python itself starts in less
        status, said, took = interrupt(place, commands[name], number, seconds)
        case = f"seed {seed}, case {index}: {name}, {number}, {seconds:.3f} s: {status} {said!r} after {took:.1f} s"
        assert status in (0, 128 + number), case
        assert status == 0 or said.endswith("Error: interrupted\n"), case
        assert "Traceback" not in said and took < 10, case
        left = [path.name for path in place.rglob(f"{OWN_PREFIX}*") if path.suffix != ".lock"]  # which locks nothing
        assert left == [], case
        for path in (*place.glob("out/**/*.png"), *place.glob("samples/*.png")):
            assert path.read_bytes().endswith(b"IEND\xaeB`\x82"), f"{case}: {path} is cut short"
        statuses[status] = statuses.get(status, 0) + 1
        for path in place.glob("samples/*"):
            path.unlink()
    return statuses


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(4))
def test_many_signals_at_random_moments(trained, seed, capsys):
    statuses = interrupt_many(trained, 100, seed=100 + seed)
    with capsys.disabled():
        print(f"\n100 signals, by exit status: {dict(sorted(statuses.items()))}")
    assert statuses.get(0, 0) < 60, "most should come in time"


def test_what_this_process_is_writing_is_removed_and_nothing_else(tmp_path):
    (tmp_path / f"{OWN_PREFIX}host-1-7.tmp").mkdir()
    (tmp_path / "whole.png").write_bytes(b"whole")
    with pytest.raises(OutputError), atomic_write(tmp_path / "sub" / "grid.png") as file:
        file.write(b"half")
        atomic_files.remove_own_temporary_files()
        assert list((tmp_path / "sub").iterdir()) == []
    assert sorted(os.listdir(tmp_path)) == [f"{OWN_PREFIX}host-1-7.tmp", "sub", "whole.png"]


def fill(number: int) -> None:
    """Make the stream of that number a pipe that is full, with a reader who doesn't read."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    os.dup2(writing, number)
    os.set_inheritable(reading, True)


@pytest.mark.slow
def test_a_stream_that_takes_nothing_is_no_reason_to_stay(trained):
    child = begin(trained, JOBS["grid"], partial(fill, 2))  # waits to say that there are but 3 images
    time.sleep(3)
    assert child.is_alive()
    os.kill(child.pid, signal.SIGTERM)
    assert end(child) == 143


def test_what_is_started_to_ignore_ctrl_c_ignores_it(trained):
    """As a shell starts what stands before `&`."""
    ignoring = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    child = begin(trained, [*JOBS["sample"], "--n", "400"], ignoring)
    time.sleep(0.1)
    os.kill(child.pid, signal.SIGINT)
    assert end(child) == 0
