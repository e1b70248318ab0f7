"""The real torchrun, once: several processes, one of them killed in mid-epoch, begun again by torchrun."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import wait_for
from tests.support.ranks import run_ranks
from tests.support.trained import assert_same_run, write_images

ROOT = Path(__file__).parent.parent.parent
OPTIONS = ["train", "tests.support.plain_models:PlainVAE", "--data", "images", "--image-size", "64",
           "--batch-size", "4", "--epochs", "20", "--precision", "fp32", "--compile", "off",
           "--checkpoint-every", "0.0001"]  # fmt: skip


@pytest.mark.slow
def test_a_killed_process_is_begun_again_and_the_run_ends_as_if_nothing_had_been(tmp_path):
    write_images(tmp_path / "images")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "--max-restarts", "1", "-m", "aecli", *OPTIONS, "--out", "killed"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(tmp_path / "killed" / "last.safetensors")
    os.kill(max(_children(process.pid)), signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr
    assert stdout.splitlines()[0].startswith("killed finished: 20 epochs")
    # Told by the survivor, which may hear torchrun's SIGTERM before it misses the other one.
    lost = "^Error: (.*another of the processes that share|interrupted; another process of) this (work|command) ended"
    assert len(re.findall(lost, stderr, re.MULTILINE)) == 1, stderr
    assert len(re.findall(r"^(?:training|resuming) killed.* 2 processes$", stderr, re.MULTILINE)) == 2
    assert run_ranks(tmp_path, [*OPTIONS, "--out", "whole", "--quiet"], 2)[0] == [0, 0]
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def _children(parent: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=True)
    return [int(pid) for pid in listed.stdout.split()]
