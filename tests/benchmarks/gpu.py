"""Runs the benchmarks that use a CUDA device, within 8 minutes (limits chosen for an H200).

    pip install ".[test]" && python -m tests.benchmarks.gpu > gpu.txt

A part that fails or exceeds its limit is reported, and the others still run.
"""

import subprocess
import sys
import time

PARTS = (
    (300, "tests.benchmarks.training", "--device", "cuda", "--batch-sizes", "64,256", "--images", "4096", "--epochs",
     "6", "--plain-steps", "12", "--repeats", "1"),
    (90, "tests.benchmarks.inference", "--device", "cuda", "--images", "500", "--repeats", "1"),
    (90, "tests.benchmarks.evaluation", "--device", "cuda", "--repeats", "1"),
)  # fmt: skip


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
