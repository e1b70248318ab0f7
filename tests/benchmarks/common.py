"""What the benchmarks share: processes timed in turns, the machine and its peaks, one table or one JSON document."""

import argparse
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryFile
from typing import Any

VERSIONS = ("torch", "torchvision", "numpy", "pillow", "scikit-image", "lpips", "typer")


@dataclass(frozen=True)
class Row:
    """One measurement: ours and the plain way's in `unit`, in one run.

    `ratio` is how many times better ours is, unless `what` says otherwise. `limit` is what the machine would allow, in
    the same unit, for the reason that `limit_is` gives; `share` is how near ours comes to it.
    """

    what: str
    unit: str
    ours: float
    plain: float | None = None
    ratio: float | None = None
    limit: float | None = None
    limit_is: str = ""

    @property
    def share(self) -> float | None:
        """How much of the limit is reached: rates are compared with it as they are, times and sizes inversely."""
        if self.limit is None or self.ours == 0:
            return None
        return self.ours / self.limit if self.unit.endswith("/s") else self.limit / self.ours


@dataclass(frozen=True)
class Ran:
    """A process that ended with status 0: wall seconds, CPU seconds, peak resident memory in MB, what it printed."""

    seconds: float
    cpu_seconds: float
    peak_mb: float
    stdout: str


def run(arguments: Sequence[str | Path], folder: Path | None = None, env: Mapping[str, str] | None = None) -> Ran:
    """Run a program and wait for its end.

    Raises:
        RuntimeError: it ended with another status than 0; what it printed is in the message.
    """
    began = time.perf_counter()
    words = [str(argument) for argument in arguments]
    before = os.times()
    environment = {**os.environ, **(env or {})}
    with TemporaryFile("w+") as file:
        with subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, cwd=folder, env=environment) as process:
            peak = 0.0
            while process.poll() is None:
                # Not ru_maxrss, which a process inherits from the one that started it.
                peak = max(peak, _resident_mb(process.pid))
                time.sleep(0.005)
        seconds, after = time.perf_counter() - began, os.times()
        file.seek(0)
        output = file.read()
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: status {process.returncode}\n{output}")
    cpu_seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return Ran(seconds, cpu_seconds, peak, output)


def _resident_mb(pid: int) -> float:
    """The largest resident size of a living process so far; 0 where there is no /proc."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0.0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) / 1e3 if found else 0.0


def in_turns(ways: Sequence[Callable[[], float]], repeats: int) -> list[list[float]]:
    """Call each way `repeats` times, turn by turn so that a change in the machine meets all; returns their figures."""
    found: list[list[float]] = [[] for _ in ways]
    for _ in range(repeats):
        for way, figures in zip(ways, found, strict=True):
            figures.append(way())
    return found


def middle(figures: Iterable[float]) -> float:
    """The median."""
    return float(median(figures))


def matmul_peak(dtype_name: str, device: str = "cpu", side: int = 4096, repeats: int = 8) -> float:
    """The best rate of a square matrix product in FLOP/s: what "peak" means in these tables."""
    import torch

    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype_name]
    matrix = torch.randn(side, side, device=device).to(dtype)
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        product = matrix @ matrix
        product[0, 0].item()
        times.append(time.perf_counter() - began)
    return 2 * side**3 / min(times[1:])


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
    """Print the rows, what was measured beside them, and the machine."""
    if as_json:
        listed = [{**asdict(row), "share": row.share} for row in rows]
        print(json.dumps({"title": title, "rows": listed, "notes": notes, "machine": machine()}, indent=2))
        return
    heading = ("", "unit", "ours", "plain", "ratio", "limit", "of limit", "the limit is")
    cells = [heading]
    for row in rows:
        ratio = f"{row.ratio:.2f}" if row.ratio is not None else ""
        share = f"{row.share:.0%}" if row.share is not None else ""
        cells.append((row.what, row.unit, _short(row.ours), _short(row.plain), ratio, _short(row.limit), share,
                      row.limit_is))  # fmt: skip
    widths = [max(len(line[column]) for line in cells) for column in range(len(heading))]
    print(title)
    for line in cells:
        columns = [cell.ljust(width) if index in (0, 1, 7) else cell.rjust(width)
                   for index, (cell, width) in enumerate(zip(line, widths, strict=True))]  # fmt: skip
        print("  ".join(columns).rstrip())
    for name, value in notes.items():
        print(f"{name}: {value}")
    print(", ".join(f"{key} {value}" for key, value in machine().items() if value is not None))


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
