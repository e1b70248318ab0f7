"""How training scales: one process against several on this machine.

    python -m tests.benchmarks.scaling [--small] [--json]

On a CPU 1, 2, 4, … processes up to one a core, each with the same number of threads; on CUDA up to one a device.
torchrun starts them and aecli's own loop trains; configurations are interleaved, and the best time of each counts.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.common import Row, aligned, interleave, run, show
from tests.benchmarks.pictures import write_photographs
from tests.benchmarks.scaling_data import measure_decoding

# Width, image side, images a process, steps in each timed epoch.
SETTINGS = ((16, 64, 8, 16), (32, 64, 8, 8), (64, 64, 8, 4), (16, 256, 4, 8), (64, 256, 4, 3))
SMALL = ((4, 32, 4, 4),)
LAUNCHES, EPOCHS = 2, 3  # launches of each configuration, and timed epochs of each kind in a launch
SYNC_RANKS = (2, 4, 8, 16)  # processes that only exchange losses, even with fewer cores
# Columns of the table of a step's parts: heading, key, factor.
PARTS = (
    ("gradients MB", "gradient_bytes", 1e-6),
    ("one process", "alone_s", 1e3),
    ("no sync", "no_sync_s", 1e3),
    ("step", "step_s", 1e3),
    ("difference", "difference_s", 1e3),
    ("all-reduce", "all_reduce_s", 1e3),
    ("bf16 all-reduce", "all_reduce_bf16_s", 1e3),
    ("bf16 step", "step_bf16_s", 1e3),
    ("broadcast", "broadcast_s", 1e3),
    ("loss sync", "sync_s", 1e3),
    ("noise µs/image", "noise_s", 1e6),
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny models and one launch, to see that it runs")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    options = parser.parse_args()
    settings, launches = (SMALL, 1) if options.small else (SETTINGS, LAUNCHES)
    with tempfile.TemporaryDirectory(prefix="aecli-scaling-") as work:
        measured = [one for setting in settings for one in measure(Path(work), setting, rank_counts(), launches)]
        rows = throughput(measured) + measure_decoding(Path(work), 64 if options.small else 400, EPOCHS)
        syncs = [_launch(count, {}) for count in SYNC_RANKS[: 1 if options.small else None]]
    notes = {"loss sync, by processes": ", ".join(f"{one['ranks']}: {one['sync_s'] * 1e3:.2f} ms" for one in syncs)}
    if options.json:
        show("Scaling", rows, True, **notes, measured=measured)
        return
    show("Scaling", rows, False, **notes)
    several = [one for one in measured if one["ranks"] > 1]
    if several:
        print("\nParts of a step in ms; no sync: the same processes without exchanging gradients")
        cells = [[f"{one[key] * factor:.4g}" for _, key, factor in PARTS] for one in several]
        lines = [[name_of(one), *line] for one, line in zip(several, cells, strict=True)]
        print(aligned([["", *(heading for heading, _, _ in PARTS)], *lines]))


def rank_counts() -> list[int]:
    """1, 2, 4, … up to one process a CUDA device, or a core where there is none."""
    most = torch.cuda.device_count() or _cores()
    return [2**power for power in range(most.bit_length())]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _launch(count: int, request: dict[str, Any], most: int = 1) -> dict[str, Any]:
    """Run scaling_ranks in `count` processes, each with 1 / `most` of the cores; returns what rank 0 prints."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count, "-m",
        "tests.benchmarks.scaling_ranks", json.dumps(request),
    ]  # fmt: skip
    printed = run(command, env={"OMP_NUM_THREADS": str(max(1, _cores() // most))}).stdout
    return dict(json.loads(next(line for line in printed.splitlines() if line.startswith('{"ranks"'))))


def measure(
    work: Path, setting: tuple[int, int, int, int], counts: Sequence[int], launches: int
) -> list[dict[str, Any]]:
    """One process; then each process count with as many images each (weak scaling) and in all (strong scaling)."""
    width, side, images, steps = setting
    ways = [(1, images), *((count, total) for count in counts[1:] for total in (count * images, images))]
    found: list[list[dict[str, Any]]] = [[] for _ in ways]

    def launch(number: int) -> float:
        count, total = ways[number]
        photographs = work / f"{side}-{steps * total}"
        if not photographs.exists():
            write_photographs(photographs, steps * total, side, side)
        config = {
            "data": str(photographs), "val_fraction": 0.0, "image_size": side, "batch_size": total, "compile": "off",
            "cache": "off", "options": {"width": width},
            "out": str(work / f"run-{width}-{side}-{number}-{len(found[number])}"),
        }  # fmt: skip
        found[number].append(_launch(count, {"config": config, "repeats": EPOCHS}, counts[-1]))
        return 0.0

    interleave([lambda number=number: launch(number) for number in range(len(ways))], launches)
    alone_s = min(one["step_s"] for one in found[0])
    return [{"width": width, "side": side, "alone_s": alone_s, **_best(each)} for each in found]


def _best(launches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The least of each time over the launches of one configuration; what is no time is the same in all of them."""
    best = {key: min(one[key] for one in launches) for key in launches[0]}
    if "no_sync_s" in best:
        best["difference_s"] = best["step_s"] - best["no_sync_s"]
    return best


def name_of(one: dict[str, Any]) -> str:
    """A setting in a few words."""
    return f"width {one['width']}, {one['side']}², {one['ranks']} x {one['images'] // one['ranks']}"


def throughput(measured: Sequence[dict[str, Any]]) -> list[Row]:
    """Images a second of several processes, against one process with the same images a process or in all."""
    rows, base = [], 1.0
    for one in measured:
        rate = one["images"] / one["step_s"]
        if one["ranks"] == 1:
            base, images = rate, one["images"]
            rows.append(Row(name_of(one), "images/s", rate))
            continue
        kind = "weak" if one["images"] > images else "strong"
        limit_is = f"{one['ranks']} times one process; {kind} scaling"
        rows.append(Row(name_of(one), "images/s", rate, base, rate / base, one["ranks"] * base, limit_is))
    return rows


if __name__ == "__main__":
    main()
