"""`aecli` in processes forked from one that has imported PyTorch already: many starts cost little."""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch

# What commands import, some of it late.
_PRELOADED = ["aecli.cli.live", "aecli.cli.train", "aecli.models.vae", "aecli.inference.comparison_grid",
              "aecli.sampling.sample", "pydantic.type_adapter", "matplotlib.figure",
              "matplotlib.backends.backend_agg", "tests.support.processes", "tests.support.terminal",
              "tests.soak.test_faults", "tests.cli.test_standard_streams"]  # fmt: skip

FITTED_PIXELS = 2**20  # of the images that a model is fitted to before its first step, here and in the tests themselves


def begin(place: Path, arguments: Sequence[str], before: Callable[[], object] = int) -> BaseProcess:
    """Start `aecli` in the folder `place`, in a process of one thread that calls `before` first.

    What it says is added to the files stdout.txt and stderr.txt there. The pictures of training are written, but not
    drawn, which would take most of a tiny run's time.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    process = context.Process(target=_run, args=(place, list(arguments), before))
    process.start()
    return process


def _run(place: Path, arguments: list[str], before: Callable[[], object]) -> None:
    from aecli.cli.main import main
    from aecli.training.inputs import preparation
    from aecli.training.observers import previews

    preparation._PIXELS = FITTED_PIXELS
    previews.draw_curves, previews.png_bytes = (lambda rows: b"curves"), (lambda picture: b"preview")
    previews.draw_rows = lambda rows: np.zeros((1, 1, 3), np.uint8)
    os.chdir(place)
    for number, name in ((1, "stdout.txt"), (2, "stderr.txt")):
        redirect(number, name)
    torch.set_num_threads(1)
    before()
    encoding = os.environ.get("PYTHONIOENCODING")
    sys.stdout, sys.stderr = (open(number, "w", closefd=False, encoding=encoding) for number in (1, 2))
    sys.argv = ["aecli", *arguments]
    main()


def redirect(number: int, path: str) -> None:
    """Have the stream of that number write to a file."""
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(opened, number)
    os.close(opened)


def set_variables(variables: Mapping[str, str]) -> None:
    """For `before` of `begin`: set variables of the environment, for what is imported later."""
    os.environ |= variables


def end(process: BaseProcess) -> int:
    """Wait for a process; its exit status."""
    process.join(timeout=600)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def wait_for(path: Path, seconds: float = 300) -> None:
    """Wait until that file is there."""
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"no {path}"
        time.sleep(0.02)
