"""Several processes train one model; one is killed, or one or all are asked to stop, at any moment; then it goes on.

pytest -m soak tests/soak/test_ranks.py -s
"""

import os
import random
import signal
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.soak.runs import TRAIN, require_sound, require_tidy
from tests.support.processes import end
from tests.support.ranks import begin_ranks
from tests.support.shards import write_tars
from tests.support.trained import assert_same_run, write_images

WAYS = ("kill one", "stop one", "stop all")
KINDS = [
    (2, ["--epochs", "3", "--checkpoint-every", "1e-6"]),
    (3, ["--epochs", "3", "--batch-size", "4", "--grad-accum", "2", "--ema", "0.9", "--checkpoint-every", "1e-3"]),
    (2, ["--data", "shards/*.tar", "--val-data", "shards/0.tar", "--steps", "10",
         "--epoch-steps", "4", "--batch-size", "4", "--shuffle-buffer", "9", "--checkpoint-every", "1e-6"]),
]  # fmt: skip
SAID = ("Error: interrupted", "Error: another of the processes")


def disturb_and_compare(place: Path, disturbances: int, seed: int) -> Counter[str]:
    """Train runs of all kinds in turn, disturbed at random moments until they are done; each must end right."""
    write_images(place / "images")
    write_tars(place / "shards", [7, 5, 6])
    moments, counts = random.Random(seed), Counter[str]()
    for number in range(10**6):
        size, options = KINDS[number % len(KINDS)]
        arguments = [*(word for word in TRAIN if word not in ("--val-fraction", "0.3")), "--image-size", "64", *options]
        whole, folder = place / f"whole-{number % len(KINDS)}", place / f"run-{number}"
        if not whole.exists():
            statuses = _train(place, [*arguments, "--out", whole.name], size)
            assert set(statuses) == {0}, (place / "stderr.txt").read_text()
        step, done = 0, False
        while not done:
            how = moments.choice(WAYS) if sum(counts[way] for way in WAYS) < disturbances else None
            wait = moments.uniform(0, 2.5)
            statuses = _train(place, [*arguments, "--out", folder.name], size, how, wait, moments.randrange(size))
            done = set(statuses) == {0}
            # A signal may come before a process has begun to listen to it.
            assert set(statuses) <= {0, 1, 143, 130, -signal.SIGKILL, -signal.SIGTERM}, statuses
            counts[how or "undisturbed"] += not done
            now = require_sound(folder, whole)
            assert now >= step, "work was lost that had been saved"
            step = now
        require_tidy(folder)
        assert_same_run(whole, folder)
        counts["runs finished"] += 1
        if sum(counts[way] for way in WAYS) >= disturbances:
            return counts
    raise AssertionError("too few disturbances hit")


def _train(
    place: Path, arguments: list[str], size: int, how: str | None = None, wait: float = 0.0, victim: int = 0
) -> list[int]:
    (place / "stderr.txt").write_text("")
    processes = begin_ranks(place, arguments, size, before=_lose_patience)
    if how is not None:
        time.sleep(wait)
        number = signal.SIGKILL if how == "kill one" else signal.SIGTERM
        for process in processes if how == "stop all" else [processes[victim]]:
            if process.is_alive():
                os.kill(process.pid or 0, number)
    _supervise(processes)
    statuses = [end(process) for process in processes]
    said = [line for line in (place / "stderr.txt").read_text().splitlines() if line.startswith("Error: ")]
    # Who was asked to stop may say so, and who lost it.
    assert len(said) <= 2 - (how in (None, "stop all")), said
    assert all(line.startswith(SAID) for line in said), said
    return statuses


def _supervise(processes: list[BaseProcess]) -> None:
    """As torchrun does: where one has failed, ask the others to end after a moment."""
    until = None
    while any(process.is_alive() for process in processes):
        if until is None and any(process.exitcode for process in processes):
            until = time.monotonic() + 5
        if until is not None and time.monotonic() > until:
            for process in processes:
                process.terminate()
            return
        time.sleep(0.02)


def _lose_patience() -> None:
    os.environ["AECLI_PEER_TIMEOUT"] = "10"


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2))
def test_disturbed_runs_go_on_to_what_they_would_have_been(tmp_path: Path, seed: int) -> None:
    counts = disturb_and_compare(tmp_path, 60, seed)
    print(dict(counts))
    assert min(counts[way] for way in WAYS) > 5
