"""Real processes in surroundings that lack something: streams, a terminal, folders, memory, threads."""

import os
import re
import subprocess
import sys
from io import StringIO

import pytest
from rich.console import Console

from aecli.cli import console, tables
from aecli.cli.main import set_up_process
from aecli.configs import EvalConfig, ModelsConfig
from aecli.evaluation.paired import evaluate
from aecli.runs.catalogue import list_models
from tests.support.processes import end
from tests.support.terminal import begin_in_terminal, output_of
from tests.support.trained import JOBS, TRAIN, fails, invoke, ok

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/dev/full, forks and the limits of a process")


def process(*args: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "aecli", *args], text=True, check=False, timeout=600, **options)


def shell(line: str, **options) -> subprocess.CompletedProcess:
    """Run a line of the shell in which `aecli` is what it is called."""
    prelude = f'aecli() {{ {sys.executable} -m aecli "$@"; }}; '
    return subprocess.run(["bash", "-c", prelude + line], capture_output=True, text=True, check=False, **options)


# Folders and variables


@pytest.mark.soak
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
    done = process(*JOBS["train"], env=environment | variables, capture_output=True)
    assert (done.returncode, "new finished: 1 epoch" in done.stdout) == (0, True), done.stderr
    assert [line for line in done.stderr.splitlines() if not re.match("training new|epoch 1/1|Next: ", line)] == []


def test_a_cache_that_cannot_be_written_is_an_error_with_both_hints(trained, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    message = fails(1, "train", "ae", *TRAIN, "--seed", "9", "--out", "new")
    assert "--cache DIR" in message and "--cache off" in message
    assert not (trained / "new").exists()


def test_a_working_folder_that_is_gone_is_an_error(tmp_path):
    """MKL would end the process with a message of its own."""
    done = shell(f"mkdir {tmp_path}/gone && cd {tmp_path}/gone && rmdir ../gone && aecli models")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ") and len(done.stderr.splitlines()) <= 2
    assert shell(f"mkdir {tmp_path}/gone && cd {tmp_path}/gone && rmdir ../gone && aecli --help").returncode == 0


@pytest.mark.slow
def test_in_a_locale_of_ascii_and_with_warnings_made_errors_a_table_is_printed():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "aecli", "models", "--runs", "absent"], capture_output=True, text=True,
        check=False, env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "TERM": "dumb"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "") and "39,076,163" in done.stdout


@pytest.fixture
def set_up(monkeypatch):
    """`set_up_process` without what would outlive the test."""
    monkeypatch.setattr("aecli.cli.main.gc.set_threshold", lambda *counts: None)
    monkeypatch.setattr("aecli.cli.main.warnings.filterwarnings", lambda *rule, **where: None)
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "COLUMNS", "LINES"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return set_up_process


@pytest.mark.parametrize("columns", ["0", "-5", "x", "\N{SUPERSCRIPT TWO}", "99999999999", ""])
def test_an_invalid_width_of_the_terminal_is_ignored(set_up, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("LINES", "0")
    set_up()
    assert "COLUMNS" not in os.environ and "LINES" not in os.environ
    monkeypatch.setenv("COLUMNS", "20")
    set_up()
    assert os.environ["COLUMNS"] == "20"


@pytest.mark.parametrize(
    ("own", "expected"), [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)]
)
def test_openmp_threads_wait_briefly_unless_the_user_says_how(set_up, own, expected, monkeypatch):
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    set_up()
    assert os.environ.get("GOMP_SPINCOUNT") == expected


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
    tables.print_evaluation(report)
    tables.print_models(list_models(ModelsConfig()))
    shown = narrow.getvalue()
    for result in report.results:
        for name, score in result.scores.items():
            for number in (score.mean, *(score.ci95 or ())):
                assert number is None or f"{number:.{2 if name == 'psnr' else 4}f}" in shown
    for number in ("39,076,163", "57,952,579", "1024×8×8", "23.9", "26.4", "[1.0000, 1.0000]"):
        assert number in shown
    assert "a-rather-lon" in shown.split() and "g-name" in shown.split(), "names are folded"


@pytest.mark.soak
def test_progress_in_20_columns_keeps_its_numbers_whole(trained):
    process, terminal = begin_in_terminal(trained, 20, [*JOBS["sample"], "--n", "60"])
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", b"".join(output_of(terminal)).decode())
    assert end(process) == 0 and "60/60 sampling" in shown
    counts = re.findall(r"[\d…]+/[\d…]+", shown)
    assert counts and all(re.fullmatch(r"\d+/(60|9)", count) for count in counts)


# Memory and threads


def test_too_little_memory_to_begin_with_is_an_error_in_a_line():
    done = shell("ulimit -v 1000000; aecli models")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: too little memory") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [(MemoryError(), "memory"), (RuntimeError("can't start new thread"), "--workers"),
     (ImportError("libcudart.so: cannot open shared object file", path="/torch/_C.so"), "installation")],
)  # fmt: skip
def test_what_the_system_refuses_is_an_error(trained, monkeypatch, error, words):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("aecli.evaluation.paired.pair_sources", fail)
    assert words in fails(1, *JOBS["eval"])


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
        invoke(*JOBS["eval"])


def test_threads_that_cannot_be_started_are_an_error(trained, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", refuse)
    for command in ("eval", "reconstruct"):
        assert "--workers" in fails(1, *JOBS[command])
