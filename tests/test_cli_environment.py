"""Real processes in surroundings that lack something: streams, a terminal, folders, memory, threads."""

import multiprocessing
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from aecli.catalogue import list_models
from aecli.cli import console
from aecli.cli.main import set_up_process
from aecli.configs import EvalConfig, ModelsConfig
from aecli.evaluation import evaluate
from tests.trained import TRAIN, fails, invoke, ok, trained, workplace

__all__ = ["trained", "workplace"]  # fixtures

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/dev/full, forks and the limits of a process")

COMMANDS = {
    "train": ["train", "ae", *TRAIN, "--epochs", "1", "--out", "run", "--cache", "off"],
    "reconstruct": ["reconstruct", "--model", "vae", "--out", "out"],
    "sample": ["sample", "--model", "vae", "--n", "2", "--out", "taken.png"],
    "grid": ["grid", "--out", "taken.png", "--n", "30"],
    "eval": ["eval", "--gt", "images", "--pred", "images", "--metrics", "psnr"],
    "models": ["models"],
}
WROTE = {"train": "run/model.safetensors", "reconstruct": "out/i7.png", "sample": "taken.png", "grid": "taken.png"}


def process(*args: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "aecli", *args], text=True, check=False, timeout=120, **options)


def shell(line: str, **options) -> subprocess.CompletedProcess:
    """Run a line of the shell in which `aecli` is what it is called."""
    prelude = f'aecli() {{ {sys.executable} -m aecli "$@"; }}; '
    return subprocess.run(["bash", "-c", prelude + line], capture_output=True, text=True, check=False, **options)


# Processes forked from one that has imported PyTorch already: many starts cost little


def forked(place: Path, args: Sequence[str], before: Callable[[], object] = int) -> multiprocessing.Process:
    """Run `aecli` in the folder `place`, its streams in the files stdout.txt and stderr.txt; `before` comes first."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_cli_environment", "aecli.cli.live", "aecli.comparison"])
    child = context.Process(target=_begin, args=(place, list(args), before))
    child.start()
    return child


def _begin(place: Path, args: list[str], before: Callable[[], object]) -> None:
    from aecli.cli.main import main

    os.chdir(place)
    for number, name in ((1, "stdout.txt"), (2, "stderr.txt")):
        redirect(number, name)
    before()
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))
    sys.argv = ["aecli", *args]
    main()


def redirect(number: int, path: str) -> None:
    opened = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.dup2(opened, number)
    os.close(opened)


def leave_alone(number: int) -> None:
    """Nobody reads what is written to the stream of that number."""
    reading, writing = os.pipe()
    os.dup2(writing, number)
    os.close(reading)
    os.close(writing)


def status_of(child: multiprocessing.Process) -> int | None:
    child.join(120)
    return child.exitcode


@pytest.mark.parametrize("before", [partial(redirect, 2, "/dev/full"), partial(leave_alone, 2)], ids=["full", "unread"])
@pytest.mark.parametrize("command", COMMANDS)
def test_messages_that_cannot_be_written_end_no_work(trained, command, before):
    (trained / "taken.png").write_text("mine")  # that it is replaced can't be said
    assert status_of(forked(trained, COMMANDS[command], before)) == 0
    assert (trained / "stdout.txt").read_text()
    if command in WROTE:
        assert (trained / WROTE[command]).stat().st_size > 100


@pytest.mark.parametrize("command", COMMANDS)
def test_a_result_that_cannot_be_written_is_told_when_the_work_is_done(trained, command):
    assert status_of(forked(trained, COMMANDS[command], partial(redirect, 1, "/dev/full"))) == 1
    said = (trained / "stderr.txt").read_text().splitlines()
    assert said[-1] == "Error: the result can't be written to stdout: No space left on device"
    if command in WROTE:
        assert (trained / WROTE[command]).stat().st_size > 100


@pytest.mark.parametrize("command", COMMANDS)
def test_a_reader_who_has_had_enough_is_told_nothing(trained, command):
    assert status_of(forked(trained, COMMANDS[command], partial(leave_alone, 1))) == 1
    said = (trained / "stderr.txt").read_text()
    assert "Error" not in said and "Traceback" not in said


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["train", "--help"], ["eval", "-h"]], ids=" ".join)
def test_help_that_cannot_be_written_is_told_in_a_line(args):
    with open("/dev/full", "w") as full:
        done = process(*args, stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (
        1, "Error: the result can't be written to stdout: No space left on device\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("aecli --version >&-", 0), ("aecli --version 2>&-", 0), ("aecli --version <&- >&- 2>&-", 0),
        ("aecli --help > /dev/full 2>&1", 1), ("aecli train vae --lr x 2> /dev/full", 2),
        ("aecli train vae --lr 2>&-", 2), ("set -o pipefail; aecli --help | true", 1), ("aecli models | head -1", 0),
        ("aecli models --runs absent --json >&- 2>&-", 0), ("aecli eval --gt absent --pred x 2> /dev/full >&-", 1),
        ("aecli grid --n 0 <&-", 2),
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


# Folders and variables


@pytest.mark.parametrize(
    "variables",
    [
        {"HOME": "/proc/absent", "TMPDIR": "/proc/absent"},
        {"HOME": "/proc/absent", "XDG_CACHE_HOME": "/dev/null", "XDG_CONFIG_HOME": "/dev/null"},
    ],
    ids=["nowhere", "no folders"],
)
def test_without_a_home_that_can_be_written_all_works_that_keeps_nothing_there(trained, variables):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "MPL"))}
    done = process(*COMMANDS["train"], env=environment | variables, capture_output=True)
    assert (done.returncode, "run finished: 1 epoch" in done.stdout) == (0, True), done.stderr
    assert [line for line in done.stderr.splitlines() if not re.match("training run|epoch 1/1", line)] == []


def test_a_cache_that_cannot_be_written_is_told_with_both_mends(trained, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    message = fails(1, "train", "ae", *TRAIN, "--seed", "9", "--out", "new")
    assert "--cache DIR" in message and "--cache off" in message
    assert not (trained / "new").exists()


def test_a_folder_that_is_gone_is_told(tmp_path):
    """MKL would end the process with a message of its own."""
    done = shell(f"mkdir {tmp_path}/gone && cd {tmp_path}/gone && rmdir ../gone && aecli models")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: the folder that this runs in is gone: change to another one\n"
    assert shell(f"mkdir {tmp_path}/gone && cd {tmp_path}/gone && rmdir ../gone && aecli --help").returncode == 0


@pytest.mark.parametrize(
    "variables", [{"PYTHONIOENCODING": "ascii", "TERM": "dumb"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}], ids=str
)
def test_whatever_the_locale_a_table_is_printed(variables):
    done = process("models", "--runs", "absent", env={**os.environ, **variables}, capture_output=True)
    assert done.returncode == 0 and "39,076,163" in done.stdout and done.stderr == ""


def test_python_that_makes_warnings_errors_runs_all_the_same():
    done = subprocess.run([sys.executable, "-W", "error", "-m", "aecli", "models", "--runs", "absent"],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("columns", ["0", "-5", "x", "\N{SUPERSCRIPT TWO}", "99999999999", ""])
def test_a_width_of_the_terminal_that_is_none_is_not_believed(columns, monkeypatch):
    monkeypatch.setattr("aecli.cli.main.gc.set_threshold", lambda *counts: None)
    monkeypatch.setattr("aecli.cli.main.warnings.filterwarnings", lambda *rule, **where: None)
    monkeypatch.setenv("GOMP_SPINCOUNT", "1")
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("LINES", "0")
    set_up_process()
    assert "COLUMNS" not in os.environ and "LINES" not in os.environ
    monkeypatch.setenv("COLUMNS", "20")
    set_up_process()
    assert os.environ["COLUMNS"] == "20"


# Twenty columns


@pytest.fixture
def narrow(monkeypatch):
    """What is printed to a terminal of 20 columns."""
    printed = StringIO()

    def terminal() -> Console:
        return Console(file=printed, force_terminal=True, width=20, color_system=None, highlight=False, markup=False)

    monkeypatch.setattr(console, "stdout", terminal)
    return printed


def test_no_number_is_cut_in_a_table_of_20_columns(trained, narrow):
    ok("reconstruct", "--model", "vae", "--split", "all", "--native", "--out", "a-rather-long-name")
    report = evaluate(EvalConfig("images", ("a-rather-long-name", "images"), metrics=("psnr", "ssim")))
    console.print_evaluation(report)
    console.print_models(list_models(ModelsConfig()))
    shown = narrow.getvalue()
    for result in report.results:
        for name, score in result.scores.items():
            for number in (score.mean, *(score.ci95 or ())):
                assert number is None or f"{number:.{2 if name == 'psnr' else 4}f}" in shown
    for number in ("39,076,163", "57,952,579", "1024×8×8", "23.9", "26.4", "[1.0000, 1.0000]"):
        assert number in shown
    assert "a-rather-lon" in shown.split() and "g-name" in shown.split(), "names are folded"


def in_terminal(columns: int, *args: str, cwd: Path) -> tuple[int, str]:
    """Run `aecli` in a terminal: its exit status, and what was shown without what steers."""
    ours, theirs = pty.openpty()
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "FORCE_COLOR")}
    started = subprocess.Popen(
        ["bash", "-c", f'stty cols {columns} rows 24; exec "$@"', "-", sys.executable, "-m", "aecli", *args],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env={**environment, "TERM": "xterm"},
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    output = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # what Linux says at the end
            break
        output += chunk
    os.close(ours)
    return started.wait(60), re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", output.decode())


def test_progress_in_20_columns_keeps_its_numbers_whole(trained):
    status, shown = in_terminal(20, "sample", "--model", "vae", "--n", "500", "--out", "s.png", cwd=trained)
    assert status == 0
    assert "500/500 sampling" in shown
    counts = re.findall(r"[\d…]+/[\d…]+", shown)
    assert counts and all(re.fullmatch(r"\d+/500", count) for count in counts)


# Memory and threads


def test_too_little_memory_to_begin_with_is_told_in_a_line():
    done = shell("ulimit -v 1000000; aecli models")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: too little memory") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [(MemoryError(), "memory"), (RuntimeError("can't start new thread"), "--workers"),
     (ImportError("libcudart.so: cannot open shared object file"), "installation"),
     (ModuleNotFoundError("No module named 'torch'", name="torch"), "No module named 'torch'")],
)  # fmt: skip
def test_what_the_system_refuses_is_told(trained, monkeypatch, error, words):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("aecli.evaluation.pair_sources", fail)
    assert words in fails(1, *COMMANDS["eval"])


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ImportError("a bug", name="aecli.evaluation"), KeyError("a")])
def test_a_bug_keeps_its_traceback(trained, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("aecli.evaluation.pair_sources", fail)
    with pytest.raises(type(error), match="a"):
        invoke(*COMMANDS["eval"])


def test_threads_that_cannot_be_started_are_told(trained, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", refuse)
    for command in ("eval", "reconstruct"):
        assert "--workers" in fails(1, *COMMANDS[command])
