"""Runs the benchmarks that use a CUDA device, within 8 minutes: training of three models, inference and evaluation.

    pip install ".[test]" && python -m tests.benchmarks.gpu > gpu.txt

A part that fails or exceeds its limit is reported, and the others still run.
"""

import subprocess
import sys
import time

TRAINING = ("tests.benchmarks.training", "--device", "cuda", "--plain-steps", "12", "--repeats", "1", "--images")
PARTS = (
    (150, *TRAINING, "2048", "--model", "vae", "--batch-sizes", "64", "--epochs", "6"),
    (90, *TRAINING, "1024", "--model", "resnet", "--batch-sizes", "32", "--epochs", "4"),
    (90, *TRAINING, "1024", "--model", "kl", "--batch-sizes", "16", "--epochs", "4"),
    (75, "tests.benchmarks.inference", "--device", "cuda", "--images", "500", "--repeats", "1"),
    (75, "tests.benchmarks.evaluation", "--device", "cuda", "--repeats", "1"),
)


def main() -> int:
    """Run all parts; return the number of those that failed."""
    failed = 0
    for limit, module, *options in PARTS:
        start = time.monotonic()
        command = [sys.executable, "-m", module, *options]
        try:
            status = subprocess.run(command, timeout=limit).returncode
        except subprocess.TimeoutExpired:
            status = 124
        failed += status != 0
        outcome = "done" if status == 0 else f"failed with status {status}"
        print(f"-- {module} {' '.join(options)}: {outcome} after {time.monotonic() - start:.0f} s\n", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
