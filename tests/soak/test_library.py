"""SIGINT at random moments of a program that trains through the library, rerun until finished.

`pytest -m soak -s tests/soak/test_library.py` sends up to 200.
"""

import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from aecli.configs import TrainConfig
from aecli.training.events import StepReport
from aecli.training.loop import train
from tests.soak.runs import require_sound, require_tidy
from tests.support.processes import end, redirect, wait_for
from tests.support.trained import assert_same_run, write_images

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
INTERRUPTED = 3


def program(place: Path, out: str) -> None:
    """What a user's script does: train, and do something of its own at each step."""
    os.chdir(place)
    redirect(2, "stderr.txt")
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config = TrainConfig("vae", data="images", val_fraction=0.3, image_size=32, epochs=4, batch_size=3, lr=1e-3,
                         ema=0.9, options={"width": 4}, device="cpu", compile="off", cache="cache",
                         out=Path(out))  # fmt: skip
    try:
        open(f"{out}-began", "w").close()
        for report in train(config):
            if isinstance(report, StepReport):
                sum(range(100_000))
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)


def run(place: Path, out: str, seconds: float | None = None) -> int:
    """Run the program, interrupt it after a while, and return its exit status."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["aecli.training.loop", "matplotlib.figure", "tests.soak.test_library"])
    began = place / f"{out}-began"
    began.unlink(missing_ok=True)
    process = context.Process(target=program, args=(place, out))
    process.start()
    if seconds is not None:
        wait_for(began)
        time.sleep(seconds)
        os.kill(process.pid or 0, signal.SIGINT)
    return end(process)


def interrupt_until_finished(place: Path, seed: int, most: int) -> int:
    """Train with at most so many interrupts; returns how many came before the end."""
    write_images(place / "images")
    assert run(place, "whole") == 0
    chance, saved, count = random.Random(seed), 0, 0
    while (status := run(place, "parts", chance.uniform(0.0, 2.0) if count < most else None)) != 0:
        case = f"seed {seed}, interrupt {count}: {(place / 'stderr.txt').read_text()}"
        assert status == INTERRUPTED, case
        assert not list(place.rglob(".aecli-*")), case
        step = require_sound(place / "parts", place / "whole")
        assert step >= saved, case
        saved, count = step, count + 1
    assert (place / "stderr.txt").read_text() == ""
    require_tidy(place / "parts")
    assert_same_run(place / "whole", place / "parts")
    return count


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
def test_many_interrupts(tmp_path, seed, capsys):
    count = interrupt_until_finished(tmp_path, seed=100 + seed, most=10)
    with capsys.disabled():
        print(f"\n{count} interrupts")
