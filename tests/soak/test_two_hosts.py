"""Two hosts, made as network namespaces with addresses of their own, train one model; one of them is cut off."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import wait_for
from tests.support.ranks import run_ranks
from tests.support.trained import write_images
from tests.training.test_ranks import assert_close_runs

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(shutil.which("ip") is None or os.geteuid() != 0, reason="network namespaces need root"),
]
ROOT = Path(__file__).parent.parent.parent
HOSTS = ("10.77.0.1", "10.77.0.2")
OPTIONS = ["train", "tests.support.plain_models:PlainVAE", "--data", "images", "--image-size", "64",
           "--batch-size", "4", "--epochs", "300", "--precision", "fp32", "--compile", "off",
           "--checkpoint-every", "0.001"]  # fmt: skip


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    names = [f"aecli{os.getpid()}{letter}" for letter in "ab"]
    cables = [f"cable{letter}" for letter in "ab"]
    for name in names:
        ip("netns", "add", name)
    try:
        ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
        for name, cable, address in zip(names, cables, HOSTS, strict=True):
            ip("link", "set", cable, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
            ip("-n", name, "link", "set", cable, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            ip("netns", "delete", name)


def begin(place: Path, name: str, number: int, said: Path) -> subprocess.Popen[bytes]:
    """One host's torchrun: the first host's serves as the meeting point, and either may go on alone."""
    launcher = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "1",
        "--max-restarts", "3", "--rdzv-backend", "c10d", "--rdzv-endpoint",
        f"{HOSTS[0]}:29400", "--rdzv-id", "campaign", "--local-addr", HOSTS[number], "--rdzv-conf",
        f"is_host={int(number == 0)},last_call_timeout=3,timeout=60",
    ]  # fmt: skip
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1", "AECLI_PEER_TIMEOUT": "10", "GLOO_SOCKET_IFNAME": f"cable{'ab'[number]}",
    }  # fmt: skip
    command = ["ip", "netns", "exec", name, *launcher, "-m", "aecli", *OPTIONS, "--out", "run"]
    with open(said, "wb") as log:
        return subprocess.Popen(command, cwd=place, env=environment, stdout=log, stderr=log)


@pytest.mark.parametrize("is_cut", [False, True])
def test_one_host_that_is_cut_off_is_done_without(tmp_path: Path, hosts: list[str], is_cut: bool) -> None:
    write_images(tmp_path / "images")
    logs = [tmp_path / f"{number}.txt" for number in range(2)]
    processes = [begin(tmp_path, name, number, logs[number]) for number, name in enumerate(hosts)]
    try:
        wait_for(tmp_path / "run" / "last.safetensors")
        if is_cut:
            ip("-n", hosts[1], "link", "set", "cableb", "down")
        assert processes[0].wait(timeout=300) == 0, logs[0].read_text()
        if not is_cut:
            assert processes[1].wait(timeout=60) == 0, logs[1].read_text()
    finally:
        for process in processes:
            process.kill()
            process.wait()
    said = logs[0].read_text()
    if is_cut:
        assert said.count("Error: another of the processes that share this work ended") == 1
        assert "resuming run after epoch" in said
    assert "2 processes" in said
    assert run_ranks(tmp_path, [*OPTIONS, "--out", "whole", "--quiet"], 1)[0] == [0]
    assert_close_runs(tmp_path / "whole", tmp_path / "run")
