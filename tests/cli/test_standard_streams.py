"""Standard streams that are full, closed, or that nobody reads."""

import os
import subprocess
import sys
from functools import partial

import pytest

from tests.cli.test_environment import process, shell
from tests.support.processes import begin, end, redirect
from tests.support.trained import JOBS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/dev/full, and forks")

WRITTEN = {"train": "new/model.safetensors", "reconstruct": "reconstructions/vae/i7.png", "sample": "samples.png",
           "grid": "grid.png", "eval": "stdout.txt", "models": "stdout.txt"}  # fmt: skip
FULL = "Error: the result can't be written to stdout: No space left on device"


def leave_alone(number: int) -> None:
    """Nobody reads what is written to the stream of that number."""
    reading, writing = os.pipe()
    os.dup2(writing, number)
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("before", [partial(redirect, 2, "/dev/full"), partial(leave_alone, 2)], ids=["full", "unread"])
@pytest.mark.parametrize("command", WRITTEN)
def test_messages_that_cannot_be_written_end_no_work(trained, command, before):
    (trained / "grid.png").write_text("mine")  # the notice that it is replaced can't be written
    assert end(begin(trained, JOBS[command], before)) == 0
    assert (trained / "stdout.txt").read_text()
    assert (trained / WRITTEN[command]).stat().st_size > 100


@pytest.mark.parametrize("command", WRITTEN)
def test_a_result_that_cannot_be_written_is_an_error_when_the_work_is_done(trained, command):
    assert end(begin(trained, JOBS[command], partial(redirect, 1, "/dev/full"))) == 1
    assert (trained / "stderr.txt").read_text().splitlines()[-1] == FULL
    if WRITTEN[command] != "stdout.txt":
        assert (trained / WRITTEN[command]).stat().st_size > 100


@pytest.mark.parametrize("command", WRITTEN)
def test_a_reader_that_closes_the_pipe_is_no_error(trained, command):
    assert end(begin(trained, JOBS[command], partial(leave_alone, 1))) == 141
    said = (trained / "stderr.txt").read_text()
    assert "Error" not in said and "Traceback" not in said


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("args", [["--help"], ["--version"], ["train", "--help"], ["eval", "-h"]], ids=" ".join)
def test_help_that_cannot_be_written_is_an_error_in_a_line(args, unbuffered, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with open("/dev/full", "w") as full:
        done = process(*args, stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (1, f"{FULL}\n")


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("aecli --version >&-", 0), ("aecli --version 2>&-", 0), ("aecli --version <&- >&- 2>&-", 0),
        ("aecli --help > /dev/full 2>&1", 1), ("aecli train vae --lr x 2> /dev/full", 2),
        ("aecli train vae --lr 2>&-", 2), ("set -o pipefail; aecli --help | true", 141), ("aecli grid --n 0 <&-", 2),
        pytest.param("aecli eval --gt absent --pred x 2> /dev/full >&-", 1, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_streams_may_be_closed_or_full(line, status):
    done = shell(line)
    assert done.returncode == status
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (1, 2), (0, 1, 2)])
def test_no_file_gets_the_number_of_a_stream_that_was_closed(tmp_path, closed):
    """It would get what anything prints, PyTorch's C++ included."""
    script = f"""if True:
        import os
        for number in {closed}:
            os.close(number)
        from aecli.cli.main import _open_streams
        _open_streams()
        with open("file", "wb") as file:
            assert file.fileno() > 2
            for number in (1, 2):
                os.write(number, b"noise") if number in {closed} else None
    """
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False)
    assert done.returncode == 0
    assert (tmp_path / "file").read_bytes() == b""
