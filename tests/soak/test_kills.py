"""Killed at any moment, a run goes on to exactly what it would have been.

pytest -m soak tests/soak/test_kills.py -s
"""

import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.soak.runs import TRAIN, require_sound, require_tidy
from tests.support.processes import begin, end
from tests.support.trained import assert_same_run, write_images

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

KINDS = [
    ["--epochs", "3", "--checkpoint-every", "1e-6"],
    ["--epochs", "4", "--checkpoint-every", "1e-3", "--ema", "0.9", "--flip", "--precision", "bf16"],
    ["--epochs", "3", "--out", "mine", "--val-fraction", "0", "--checkpoint-every", "5e-3"],
    ["--epochs", "3", "--patience", "1", "--seed", "7"],
]
# Everything that a step can have beside the report's.
OBJECTIVE = (
    "--epochs 3 --checkpoint-every 1e-6 --perceptual-weight 0.1 --perceptual-net alex --ssim-weight 0.1 "
    "--adversarial-weight 0.1 --adversarial-start 4 --adversarial-ramp 2 --optimizer muon --schedule cosine --warmup 2 "
    "--clip-norm 1 --ema 0.9 --best-by lpips"
).split()


def kill_and_compare(place: Path, kinds: list[list[str]], kills: int, seed: int) -> dict[str, int]:
    """Train runs of `kinds` in turn, killing them at random moments, until `kills` have hit; each must end right."""
    write_images(place / "images")
    moments = random.Random(seed)
    counts = {"killed": 0, "before the first step": 0, "in the middle": 0, "runs finished": 0}
    for number in range(10**6):
        kind = kinds[number % len(kinds)]
        whole = place / f"whole-{number % len(kinds)}"
        folder = place / "pieces" / ("mine" if "--out" in kind else "vae")
        arguments = [*TRAIN, *kind]
        if not whole.exists():
            shutil.rmtree(place / "pieces", ignore_errors=True)
            _begin_in(place, arguments, folder, expect=0)
            folder.rename(whole)
        shutil.rmtree(place / "pieces", ignore_errors=True)
        step, status = 0, None
        while status != 0:
            wait = moments.uniform(0, 1.2) if counts["killed"] < kills else None
            status = _begin_in(place, arguments, folder, wait)
            assert status in (0, -signal.SIGKILL), (place / "stderr.txt").read_text()
            now = require_sound(folder, whole)
            assert now >= step, "work was lost that had been saved"
            if status:
                counts["killed"] += 1
                counts["in the middle" if now else "before the first step"] += 1
            step = now
        require_tidy(folder)
        assert_same_run(whole, folder)
        counts["runs finished"] += 1
        if counts["killed"] >= kills:
            return counts
    raise AssertionError("too few kills hit")


def _begin_in(place: Path, arguments: list[str], folder: Path, wait: float | None = None, expect: int | None = None):
    out = ["--out", f"pieces/{folder.name}"] if "--out" in arguments else ["--runs", "pieces"]
    kept = [word for word in arguments if word not in ("--out", "mine")]
    process = begin(place, [*kept, *out])
    if wait is not None:
        time.sleep(wait)
        process.kill()
    status = end(process)
    assert expect is None or status == expect, (place / "stderr.txt").read_text()
    return status


@pytest.mark.slow
def test_killed_runs_go_on_to_what_they_would_have_been(tmp_path):
    counts = kill_and_compare(tmp_path, KINDS[1:2], kills=2, seed=0)
    assert counts["killed"] == 2


@pytest.mark.soak
def test_kills_of_an_adversarial_perceptual_run_with_muon_and_a_cosine(tmp_path):
    counts = kill_and_compare(tmp_path, [OBJECTIVE], kills=200, seed=9)
    print(counts)
    assert counts["killed"] == 200 and counts["in the middle"] > 50


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(5))
def test_hundreds_of_kills(tmp_path, seed):
    counts = kill_and_compare(tmp_path, KINDS, kills=200, seed=seed)
    print(counts)
    assert counts["killed"] == 200 and counts["in the middle"] > 50
