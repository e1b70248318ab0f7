"""Real processes in surroundings that lack something: streams, a terminal, folders, memory, threads."""

import os
import pty
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from aecli.cli import console
from aecli.cli.main import set_up_process
from aecli.configs import EvalConfig, ModelsConfig
from aecli.evaluation.paired import evaluate
from aecli.runs.catalogue import list_models
from tests.support.trained import TRAIN, fails, invoke, ok

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/dev/full, forks and the limits of a process")

COMMANDS = {
    "train": ["train", "ae", *TRAIN, "--epochs", "1", "--out", "run", "--cache", "off"],
    "reconstruct": ["reconstruct", "--model", "vae", "--out", "out"],
    "sample": ["sample", "--model", "vae", "--n", "2", "--out", "taken.png"],
    "grid": ["grid", "--out", "taken.png", "--n", "30"],
    "eval": ["eval", "--gt", "images", "--pred", "images", "--metrics", "psnr"],
    "models": ["models"],
}


def process(*args: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "aecli", *args], text=True, check=False, timeout=120, **options)


def shell(line: str, **options) -> subprocess.CompletedProcess:
    """Run a line of the shell in which `aecli` is what it is called."""
    prelude = f'aecli() {{ {sys.executable} -m aecli "$@"; }}; '
    return subprocess.run(["bash", "-c", prelude + line], capture_output=True, text=True, check=False, **options)


# Folders and variables


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "variables", [{"PYTHONIOENCODING": "ascii", "TERM": "dumb"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}], ids=str
)
def test_whatever_the_locale_a_table_is_printed(variables):
    done = process("models", "--runs", "absent", env={**os.environ, **variables}, capture_output=True)
    assert done.returncode == 0 and "39,076,163" in done.stdout and done.stderr == ""


@pytest.mark.slow
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


@pytest.mark.slow
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
     (ImportError("libcudart.so: cannot open shared object file", path="/torch/_C.so"), "installation")],
)  # fmt: skip
def test_what_the_system_refuses_is_told(trained, monkeypatch, error, words):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("aecli.evaluation.paired.pair_sources", fail)
    assert words in fails(1, *COMMANDS["eval"])


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a bug"),
        ImportError("a bug", name="aecli.evaluation.paired", path="/aecli/evaluation.py"),
        ModuleNotFoundError("a module"),
        KeyError("a"),
    ],
)
def test_a_bug_keeps_its_traceback(trained, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("aecli.evaluation.paired.pair_sources", fail)
    with pytest.raises(type(error), match="a"):
        invoke(*COMMANDS["eval"])


def test_threads_that_cannot_be_started_are_told(trained, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", refuse)
    for command in ("eval", "reconstruct"):
        assert "--workers" in fails(1, *COMMANDS[command])
