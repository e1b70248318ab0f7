"""Processes that begin the same run, or the same pack, at the same moment: one has it, the others say who.

pytest -m soak tests/soak/test_two_processes.py -s
"""

import collections
import random
import re
import shutil
import sys
import time

import pytest

from tests.soak.runs import TRAIN, require_sound, require_tidy
from tests.support.processes import begin, end
from tests.support.trained import assert_same_run, write_images

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX locks")
RUN = [*TRAIN, "--epochs", "2"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    place = tmp_path_factory.mktemp("two")
    write_images(place / "images")
    assert end(begin(place, [*RUN, "--runs", "whole"])) == 0, (place / "stderr.txt").read_text()
    return place


def race(whole, trial):
    """Three processes, two of the same command, one of another; sometimes one of the two is killed meanwhile."""
    chance = random.Random(trial)
    place = whole / "work"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    (place / "images").symlink_to(whole / "images")
    options = chance.choice([["--out", "mine"], ["--runs", "runs"]])
    other = ["--runs", "runs", "--seed", "5"]
    folder = place / ("mine" if options[0] == "--out" else "runs/vae")
    processes = []
    for arguments in chance.sample([options, options, other], 3):
        processes.append((arguments, begin(place, [*RUN, *arguments])))
        time.sleep(chance.choice([0, 0, 0.05, 0.5]))
    killed = chance.random() < 0.3
    if killed:
        time.sleep(chance.uniform(0, 1))
        next(process for arguments, process in processes if arguments is options).kill()
    statuses = [end(process) for _, process in processes]
    said = (place / "stderr.txt").read_text()
    assert "Traceback" not in said, said
    refused = re.findall(r"Error: .* is being trained by process (\d+) on .*\nhint: wait for its end", said)
    assert statuses.count(1) == len(refused), (trial, statuses, said)
    assert set(map(int, refused)) <= {process.pid for _, process in processes}, said
    assert [status for (arguments, _), status in zip(processes, statuses, strict=True) if arguments is other] == [0]
    if killed and statuses.count(0) < 2:
        assert end(begin(place, [*RUN, *options])) == 0, (place / "stderr.txt").read_text()
    found = [run for run in (place / "mine", *(place / "runs").glob("*")) if run.exists()]
    same = [run for run in found if '"seed": 0' in (run / "config.json").read_text()]
    assert folder.exists() and same
    steps = [require_sound(run, whole / "whole/vae") for run in same]
    finished = [run for run, step in zip(same, steps, strict=True) if step == max(steps)]
    assert killed or finished == same
    for run in finished:
        require_tidy(run)
        assert_same_run(whole / "whole/vae", run)
    assert not [path for path in (place / "cache").iterdir() if path.name.startswith(".")]
    return "killed" if killed else f"{len(refused)} refused"


@pytest.mark.slow
def test_at_once(whole):
    race(whole, 0)


@pytest.mark.soak
def test_at_once_many_times(whole):
    print(collections.Counter(race(whole, trial) for trial in range(150)))
