"""Signals to training: the first saves, the second leaves at once, a terminal that goes away costs nothing."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from aecli.storage.atomic_files import list_names
from tests.support.processes import begin, end, wait_for
from tests.support.terminal import begin_in_terminal
from tests.support.trained import TRAIN

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
LONG = ["train", "vae", *TRAIN, "--epochs", "100000", "--compile", "off", "--cache", "cache", "--runs", "runs"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(workplace, number, status):
    process = begin(workplace, LONG)
    wait_for(workplace / "runs/vae/last.safetensors")
    os.kill(process.pid, number)
    assert end(process) == status
    said = (workplace / "stderr.txt").read_text()
    assert "the run is saved in runs/vae\nhint: run the same command again to go on from there" in said
    assert not [path for path in (workplace / "runs/vae").iterdir() if path.name.startswith(".")]


def test_a_second_signal_leaves_at_once(workplace):
    """A step that never ends, and that Python's own handlers would wait for: a lock taken twice, in C."""
    (workplace / "slow.py").write_text(
        "import ctypes\n"
        "from aecli.models.vae import VAE\n\n\n"
        "class Slow(VAE):\n"
        "    def predict(self, images, noise=None):\n"
        "        open('stepping', 'w').close()\n"
        "        library, lock = ctypes.CDLL(None), ctypes.create_string_buffer(256)\n"
        "        while True:\n"
        "            library.pthread_mutex_lock(lock)\n"
    )
    process = begin(workplace, ["train", "slow:Slow", *LONG[2:]])
    wait_for(workplace / "stepping")
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGTERM)  # an echo of the first, as parents and terminals send it, is none
    time.sleep(0.8)
    assert process.is_alive()
    began = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    assert end(process) == 130
    assert (
        (workplace / "stderr.txt").read_text().endswith("Error: interrupted at once; what was saved before is kept\n")
    )
    assert time.monotonic() - began < 10


def test_what_is_started_to_ignore_hangups_ignores_them(workplace):
    process = begin(workplace, LONG, partial(signal.signal, signal.SIGHUP, signal.SIG_IGN))
    wait_for(workplace / "runs/vae/last.safetensors")
    os.kill(process.pid, signal.SIGHUP)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGTERM)
    assert end(process) == 143


@pytest.mark.slow
def test_a_terminal_that_is_closed_leaves_a_run_saved(workplace):
    process, terminal = begin_in_terminal(workplace, 80, LONG)
    wait_for(workplace / "runs/vae/last.safetensors")
    os.close(terminal)
    os.kill(process.pid, signal.SIGHUP)  # what the system sends to the terminal's own session
    assert end(process) == 129
    assert "last.safetensors" in list_names(workplace / "runs/vae")


def test_a_forked_child_dies_by_its_own_signal_and_holds_nobody_up():
    """As a data loader's workers do; their parent is not asked to stop."""
    script = """if True:
        import os, signal, time
        from aecli.cli.signals import StopRequest
        with StopRequest() as request:
            killed, left = ((os.fork() or time.sleep(60)) for _ in range(2))
            time.sleep(0.3)
            os.kill(killed, signal.SIGTERM)
            assert os.waitpid(killed, 0)[1] == signal.SIGTERM
            assert not request.stop()
        os.kill(left, signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", script], check=True, timeout=600)
