"""Runs the benchmarks that use a CUDA device, in less than 8 minutes: training of three models, inference, evaluation.

    pip install ".[test]" && python -m tests.benchmarks.gpu > gpu.txt
    python -m tests.benchmarks.gpu --device cpu --tiny

A part that fails or exceeds its limit is reported, and the others still run. `--tiny` takes the same ways through them
on as few and small images as there can be, to see that they work.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

TRAINING = ("tests.benchmarks.training", "--repeats", "1")
PARTS = (
    (150, *TRAINING, "--model", "vae", "--batch-sizes", "64", "--images", "2048", "--epochs", "6",
     "--plain-steps", "12"),
    (90, *TRAINING, "--model", "resnet", "--batch-sizes", "32", "--images", "1024", "--epochs", "4",
     "--plain-steps", "12"),
    (90, *TRAINING, "--model", "kl", "--batch-sizes", "16", "--images", "512", "--epochs", "2", "--plain-steps", "6"),
    (60, "tests.benchmarks.inference", "--images", "500", "--repeats", "1"),
    (75, "tests.benchmarks.evaluation", "--pairs", "120", "--repeats", "1"),
)  # fmt: skip
TINY = (
    (300, *TRAINING, "--model", "resnet", "--image-size", "32", "--batch-sizes", "2", "--images", "4", "--epochs", "1",
     "--plain-steps", "1"),
    (300, "tests.benchmarks.inference", "--images", "1", "--repeats", "1"),
    (300, "tests.benchmarks.evaluation", "--pairs", "1", "--repeats", "1"),
)  # fmt: skip
TIMED_OUT = 124


def main() -> int:
    """Run all parts; return the number of those that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda or cpu (cuda)")
    parser.add_argument("--tiny", action="store_true", help="on as few and small images as there can be")
    options = parser.parse_args()
    failed = 0
    for limit, module, *given in TINY if options.tiny else PARTS:
        start = time.monotonic()
        status = run_within(limit, [sys.executable, "-m", module, "--device", options.device, *given])
        failed += status != 0
        outcome = "done" if status == 0 else f"failed with status {status}"
        print(f"-- {module} {' '.join(given)}: {outcome} after {time.monotonic() - start:.0f} s\n", flush=True)
    return failed


def run_within(seconds: float, command: Sequence[str]) -> int:
    """Run a program; after so many seconds end it and those that it started, which would slow the next one down."""
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return TIMED_OUT
        finally:
            if process.poll() is None:  # also after Ctrl-C, which doesn't reach another session
                os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
