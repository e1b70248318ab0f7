"""Shared by the benchmarks: interleaved timing of processes, the machine and its peaks, a table or JSON as output."""

import argparse
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

VERSIONS = ("torch", "torchvision", "numpy", "pillow", "scikit-image", "lpips", "typer")


@dataclass(frozen=True)
class Row:
    """One measurement: aecli (`ours`) and the baseline (`plain`) in `unit`, from one run.

    `ratio` is how many times better ours is, unless `what` says otherwise. `limit` is the machine's upper bound in the
    same unit, `limit_is` how it was derived, and `of_limit` the fraction of it that ours reaches.
    """

    what: str
    unit: str
    ours: float
    plain: float | None = None
    ratio: float | None = None
    limit: float | None = None
    limit_is: str = ""

    @property
    def of_limit(self) -> float | None:
        """Fraction of the limit reached: ours / limit for rates, limit / ours for times and sizes."""
        if self.limit is None or self.ours == 0:
            return None
        return self.ours / self.limit if self.unit.endswith("/s") else self.limit / self.ours


@dataclass(frozen=True)
class Completed:
    """A process that exited with status 0: wall seconds, CPU seconds, peak resident memory in MB, its output."""

    seconds: float
    cpu_seconds: float
    peak_mb: float
    stdout: str


def run(arguments: Sequence[str | Path], folder: Path | None = None, env: Mapping[str, str] | None = None) -> Completed:
    """Run a program to its end.

    Raises:
        RuntimeError: its exit status is not 0; the message contains its output.
    """
    start = time.perf_counter()
    words = [str(argument) for argument in arguments]
    before = os.times()
    environment = {**os.environ, **(env or {})}
    with TemporaryFile("w+") as file:
        with subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, cwd=folder, env=environment) as process:
            peak = 0.0
            while process.poll() is None:
                # Not ru_maxrss, which a child inherits from its parent.
                peak = max(peak, _resident_mb(process.pid))
                time.sleep(0.005)
        seconds, after = time.perf_counter() - start, os.times()
        file.seek(0)
        output = file.read()
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: status {process.returncode}\n{output}")
    cpu_seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return Completed(seconds, cpu_seconds, peak, output)


def _resident_mb(pid: int) -> float:
    """Peak resident size so far of a running process; 0 on systems without /proc."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0.0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) / 1e3 if found else 0.0


_LONGEST_PRODUCT = 0.1  # seconds


def interleave(ways: Sequence[Callable[[], float]], repeats: int) -> list[list[float]]:
    """Call each function `repeats` times, interleaved, so that changes of the machine's load affect all alike."""
    found: list[list[float]] = [[] for _ in ways]
    for _ in range(repeats):
        for way, figures in zip(ways, found, strict=True):
            figures.append(way())
    return found


def matmul_peak(dtype_name: str, device: str = "cpu", side: int = 4096, repeats: int = 8) -> float:
    """The best rate of a square matrix product, in FLOP/s: the "peak" of these tables.

    Sides grow up to `side`, or until a product takes so long that a larger one would be no faster: without bf16
    instructions one of 4096 takes a minute.
    """
    import torch

    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype_name]
    best, tried = 0.0, min(side, 512)
    while True:
        matrix = torch.randn(tried, tried, device=device).to(dtype)
        times = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            product = matrix @ matrix
            product[0, 0].item()
            times.append(time.perf_counter() - start)
        best = max(best, 2 * tried**3 / min(times[1:]))
        if tried >= side or min(times) > _LONGEST_PRODUCT:
            return best
        tried = min(side, 2 * tried)


def arguments(description: str, **options: tuple[Any, str]) -> argparse.Namespace:
    """Parse `--name VALUE` for each option (its default and help), and `--json`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    for name, (default, text) in options.items():
        kind = str if default is None else type(default)
        parser.add_argument(f"--{name.replace('_', '-')}", default=default, type=kind, help=f"{text} ({default})")
    return parser.parse_args()


def machine() -> dict[str, Any]:
    """Processor, cores, memory, GPU and versions."""
    import torch

    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    instructions = [name for name, has in (("AMX", torch.cpu._is_amx_tile_supported()),
                                           ("AVX-512 BF16", torch.cpu._is_avx512_bf16_supported())) if has]  # fmt: skip
    return {
        "processor": " ".join([model, *instructions]),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: version(name) for name in VERSIONS},
    }


def show(title: str, rows: Sequence[Row], as_json: bool, **notes: Any) -> None:
    """Print the rows, the notes and the machine."""
    if as_json:
        listed = [{**asdict(row), "of_limit": row.of_limit} for row in rows]
        print(json.dumps({"title": title, "rows": listed, "notes": notes, "machine": machine()}, indent=2))
        return
    heading = ("", "unit", "ours", "plain", "ratio", "limit", "of limit", "the limit is")
    cells = [heading]
    for row in rows:
        ratio = f"{row.ratio:.2f}" if row.ratio is not None else ""
        of_limit = f"{row.of_limit:.0%}" if row.of_limit is not None else ""
        cells.append((row.what, row.unit, _short(row.ours), _short(row.plain), ratio, _short(row.limit), of_limit,
                      row.limit_is))  # fmt: skip
    print(title)
    print(aligned(cells, left=(0, 1, 7)))
    for name, value in notes.items():
        print(f"{name}: {value}")
    print(", ".join(f"{key} {value}" for key, value in machine().items() if value is not None))


def aligned(lines: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Cells in columns of equal width: those numbered in `left` aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = []
    for line in lines:
        cells = [cell.ljust(width) if index in left else cell.rjust(width)
                 for index, (cell, width) in enumerate(zip(line, widths, strict=True))]  # fmt: skip
        rows.append("  ".join(cells).rstrip())
    return "\n".join(rows)


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
