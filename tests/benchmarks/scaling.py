"""How training scales: one process against several here, and by a stated model on many GPUs.

    python -m tests.benchmarks.scaling [--small] [--json]

On a CPU one process, two, four and so on up to one a core, each with the same threads; on CUDA up to one a device. All
are started by torchrun and train by aecli's own loop, in turns; times are the best of those. The form of the model
(scaling_model.py) is fitted to what is measured here; what it says of GPUs stands on figures that are printed as
assumptions.
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

from tests.benchmarks.common import Row, in_turns, run, show
from tests.benchmarks.pictures import write_photographs
from tests.benchmarks.scaling_data import Decoding, data_tables, measure_decoding
from tests.benchmarks.scaling_model import Fit, fit
from tests.benchmarks.scaling_predictions import Table, gpu_tables, text

# Width, image side, images a process, steps in each epoch that is timed.
SETTINGS = ((16, 64, 8, 16), (32, 64, 8, 8), (64, 64, 8, 4), (16, 256, 4, 8), (64, 256, 4, 3))
SMALL = ((4, 32, 4, 4),)
LAUNCHES, EPOCHS = 2, 3  # of each setting and number of processes, in turns; of each kind, in each launch, in turns
LOOKING = (2, 4, 8, 16)  # processes that only look about, be there as many cores or not
PARTS = ("step_s", "apart_s", "all_reduce_s", "all_reduce_bf16_s", "broadcast_s", "look_s", "step_bf16_s", "noise_s")


def main() -> None:
    """Measure, fit, compute, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny models and one turn, to see that it runs")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    options = parser.parse_args()
    settings, launches = (SMALL, 1) if options.small else (SETTINGS, LAUNCHES)
    with tempfile.TemporaryDirectory(prefix="aecli-scaling-") as work:
        measured = [one for setting in settings for one in measure(Path(work), setting, rank_counts(), launches)]
        decoding = measure_decoding(Path(work), 64 if options.small else 400, EPOCHS)
        looks = [_launch(count, {}) for count in LOOKING[: 2 if options.small else None]]
    several = [one for one in measured if one["ranks"] > 1]
    fitted = fit(several) if several else None
    tables = [parts_table(several, fitted)] if fitted else []
    tables += [*gpu_tables(), *data_tables(decoding)]
    report(measured, decoding, looks, fitted, tables, options.json)


def rank_counts() -> list[int]:
    """1, 2, 4, … up to one process a CUDA device, or a core where there is none."""
    most = torch.cuda.device_count() or _cores()
    return [2**power for power in range(most.bit_length())]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _launch(count: int, asked: dict[str, Any], most: int = 1) -> dict[str, Any]:
    """What the first of `count` processes says that do what is asked, each with 1 / `most` of the cores."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count, "-m",
        "tests.benchmarks.scaling_ranks", json.dumps(asked),
    ]  # fmt: skip
    said = run(command, env={"OMP_NUM_THREADS": str(max(1, _cores() // most))}).stdout
    return dict(json.loads(next(line for line in said.splitlines() if line.startswith('{"ranks"'))))


def measure(
    work: Path, setting: tuple[int, int, int, int], counts: Sequence[int], launches: int
) -> list[dict[str, Any]]:
    """One process, then each number of them with as many images each, and with as many in all; launched in turns."""
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

    in_turns([lambda number=number: launch(number) for number in range(len(ways))], launches)
    merged = [
        {**each[0], **{part: min(one[part] for one in each) for part in PARTS if part in each[0]}} for each in found
    ]
    return [{"width": width, "side": side, **each, "alone_s": merged[0]["step_s"]} for each in merged]


def name_of(one: dict[str, Any]) -> str:
    """A setting in a few words."""
    return f"width {one['width']}, {one['side']}², {one['ranks']} x {one['images'] // one['ranks']}"


def throughput(measured: Sequence[dict[str, Any]]) -> list[Row]:
    """Images a second of several processes, against one of them that has a whole step's or its own share of images."""
    rows, base = [], 1.0
    for one in measured:
        rate = one["images"] / one["step_s"]
        if one["ranks"] == 1:
            base, images = rate, one["images"]
            rows.append(Row(name_of(one), "images/s", rate))
            continue
        kind = "each" if one["images"] > images else "in all"
        limit_is = f"{one['ranks']} times one process; as many images {kind} as there"
        rows.append(Row(name_of(one), "images/s", rate, base, rate / base, one["ranks"] * base, limit_is))
    return rows


def parts_table(several: Sequence[dict[str, Any]], fitted: Fit) -> Table:
    """What a step of several processes consists of, measured, and what the fitted model makes of it."""
    lines = []
    for one in several:
        total = sum(one["buckets"])
        modelled = one["apart_s"] + fitted.exposed_s(one["ranks"], one["buckets"]) + one["broadcast_s"]
        milliseconds = [one[part] * 1e3 for part in ("alone_s", "apart_s", "step_s")]
        milliseconds += [(one["step_s"] - one["apart_s"]) * 1e3]
        milliseconds += [one[part] * 1e3 for part in ("all_reduce_s", "all_reduce_bf16_s", "step_bf16_s")]
        milliseconds += [one["broadcast_s"] * 1e3, one["look_s"] * 1e3, one["noise_s"] * 1e6, modelled * 1e3]
        lines.append([name_of(one), f"{total / 1e6:.1f}", f"{one['buffers'] / 1e3:.1f}", f"{one['look_bytes']}",
                      *(f"{each:.4g}" for each in milliseconds), f"{modelled / one['step_s'] - 1:+.1%}"])  # fmt: skip
    heading = ["", "gradients MB", "buffers kB", "a look B", "one process", "beside", "step", "longer by",
               "all-reduce", "in bf16", "step in bf16", "broadcast", "a look", "noise µs/image", "model",
               "off"]  # fmt: skip
    return Table("A step's parts, measured, in ms; beside: the same processes, nothing exchanged", heading, lines)


def report(
    measured: Sequence[dict[str, Any]],
    decoding: Decoding,
    looks: Sequence[dict[str, Any]],
    fitted: Fit | None,
    tables: Sequence[Table],
    as_json: bool,
) -> None:
    """Print everything, as tables or as one JSON document."""
    notes = {"a look of so many processes": ", ".join(f"{one['ranks']}: {one['look_s'] * 1e3:.2f} ms" for one in looks)}
    if fitted:
        notes["fitted"] = (
            f"an all-reduce takes {fitted.latency_s * 1e3:.3g} ms a bucket and 2(N-1)/N of its bytes at "
            f"{fitted.bytes_per_s / 1e9:.3g} GB/s; a second of it makes a step {fitted.paid:.2f} s longer"
        )
    rows = throughput(measured) + decoding.rows()
    if as_json:
        listed = {"measured": list(measured), "looks": list(looks), "tables": [vars(table) for table in tables]}
        show("Scaling", rows, True, **listed, **notes)
        return
    show("Scaling, measured here", rows, False, **notes)
    for table in tables:
        print("\n" + text(table))


if __name__ == "__main__":
    main()
