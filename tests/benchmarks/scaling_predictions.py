"""What the model of scaling_model.py says of the report's VAE at 256² on many GPUs, and what it takes for granted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from aecli.models import registry
from tests.benchmarks.scaling_model import Load, Machines, Step, images_for, load_of, most_processes, predict

# Assumed, none of it measured. Peaks are NVIDIA's data sheets of H100 and H200 SXM: bf16, dense, the same for both.
PEAK = 989e12
REACHED = 0.30  # of the peak: convolutions at half of it, and as long again for Mish and batch normalisation
STEP_FLOPS = 79.0e9  # an image at 256², forward and backward
NVLINK = 450e9 * 0.7  # bytes/s, each way; the share is that which large all-reduces reach
LINKS = (25, 400)  # Gbit/s of a machine
LINK_REACHED = 0.9
COUNTS = (8, 64, 512)
RARE_LOOKS = 2.5  # seconds, in place of a quarter of one
LEAN: dict[str, Any] = {"syncs_batchnorm": False, "look_seconds": RARE_LOOKS}
H100 = Machines(
    image_s=STEP_FLOPS / (REACHED * PEAK),
    fixed_s=2e-3,  # Adam and casts move 2 GB at two thirds of 3.35 TB/s; the rest is for launching kernels
    inside=NVLINK,
    between=LINK_REACHED * LINKS[-1] * 1e9 / 8,
    inside_hop_s=3e-6,
    between_hop_s=10e-6,
    a_machine=8,
    hidden=1.0,
    noise_s=0.5e-6,  # 65,536 normal numbers, written at 0.5 TB/s
    look_hop_s=50e-6,  # TCP between machines
)
ASSUMED = (
    f"assumed: {PEAK / 1e12:.0f} TFLOP/s bf16 dense (data sheet, H100 and H200), {REACHED:.0%} of it reached, so "
    f"{1 / H100.image_s:,.0f} images/s a GPU; {H100.fixed_s * 1e3:.0f} ms a step for what does not grow with images; "
    f"NVLink {NVLINK / 1e9:.0f} GB/s, {LINK_REACHED:.0%} of a machine's link; hops {H100.inside_hop_s * 1e6:.0f} µs "
    f"inside, {H100.between_hop_s * 1e6:.0f} µs between, {H100.look_hop_s * 1e6:.0f} µs over TCP; machines of 8"
)


@dataclass(frozen=True)
class Table:
    """Words in columns."""

    title: str
    heading: Sequence[str]
    lines: Sequence[Sequence[str]]


def text(table: Table) -> str:
    """The table as it is printed."""
    cells = [list(table.heading), *(list(line) for line in table.lines)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(table.heading))]
    rows = (
        "  ".join(cell.rjust(width) if column else cell.ljust(width)
                  for column, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in cells
    )  # fmt: skip
    return "\n".join([table.title, *rows])


@cache
def report_load() -> Load:
    """The report's VAE at 256²: 231.8 MB of gradients."""
    with torch.device("meta"):
        return load_of(registry.build("vae", registry.resolve_options("vae", {})), 256)


def gpu_machines(gigabits: float, **changed: Any) -> Machines:
    """H100s in machines of 8, with a link of so many Gbit/s between them; `changed` are fields of Machines."""
    return replace(H100, between=LINK_REACHED * gigabits * 1e9 / 8, **changed)


def gpu_step(count: int, gigabits: float, images: int, bits: int = 32, accumulate: int = 1, **changed: Any) -> Step:
    """A step of the report's VAE at 256² on `count` GPUs, `images` at once on each."""
    return predict(report_load(), gpu_machines(gigabits, **changed), count, images, bits, accumulate)


def gpu_tables() -> list[Table]:
    """Steps, what moves them, and where scaling stops."""
    return [_steps(), _moves(), _enough_images(), _one_batch()]


def _steps() -> Table:
    lines = []
    for gigabits in LINKS:
        for images in (32, 128):
            for count in COUNTS:
                step = gpu_step(count, gigabits, images)
                parts = (step.compute, step.exposed, step.broadcast, step.statistics, step.noise, step.looks)
                lines.append([f"{gigabits} Gbit/s, {count} GPUs, {images} images each", f"{step.images:,}",
                              f"{step.seconds * 1e3:.1f}", *(f"{part * 1e3:.2f}" for part in parts),
                              f"{step.images_per_s:,.0f}", f"{step.efficiency:.0%}"])  # fmt: skip
    heading = ["", "global batch", "step ms", "compute", "waiting for gradients", "buffers", "batch statistics",
               "noise", "looks", "images/s", "efficiency"]  # fmt: skip
    return Table(f"Computed: the report's VAE at 256², ms a step\n{ASSUMED}", heading, lines)


def _moves() -> Table:
    ways: tuple[tuple[str, dict[str, Any]], ...] = (
        ("as it is", {}),
        ("gradients in bf16", {"bits": 16}),
        ("--sync-batchnorm off", {"syncs_batchnorm": False}),
        (f"looks every {RARE_LOOKS:g} s", {"look_seconds": RARE_LOOKS}),
        ("all three", {"bits": 16, **LEAN}),
        ("the last two and --accumulate 4", {"accumulate": 4, **LEAN}),
        ("all three and --accumulate 4", {"bits": 16, "accumulate": 4, **LEAN}),
    )
    lines = [
        [what, *(f"{gpu_step(count, gigabits, 32, **how).efficiency:.0%}" for gigabits in LINKS for count in COUNTS)]
        for what, how in ways
    ]
    heading = ["", *(f"{count} at {gigabits}" for gigabits in LINKS for count in COUNTS)]
    return Table("Computed: efficiency with 32 images a GPU at once; GPUs at Gbit/s", heading, lines)


def _enough_images() -> Table:
    lines = []
    for share in (0.8, 0.5):
        for bits in (32, 16):
            for what, how in (("as it is", {}), ("--sync-batchnorm off, rare looks", LEAN)):
                found = [images_for(report_load(), gpu_machines(gigabits, **how), count, share, bits)
                         for gigabits in LINKS for count in COUNTS]  # fmt: skip
                lines.append([f"{share:.0%}, gradients of {bits} bits, {what}",
                              *("none" if each is None else f"{each:,}" for each in found)])  # fmt: skip
    heading = ["", *(f"{count} at {gigabits}" for gigabits in LINKS for count in COUNTS)]
    title = "Computed: the fewest images a GPU and step (powers of two, --accumulate 1) for an efficiency"
    return Table(title, heading, lines)


def _one_batch() -> Table:
    lines = []
    for batch in (256, 1024, 4096, 16384):
        for bits in (32, 16):
            found = [most_processes(report_load(), gpu_machines(gigabits, **LEAN), batch, share, bits)
                     for gigabits in LINKS for share in (0.8, 0.5)]  # fmt: skip
            lines.append([f"{batch:,} images, gradients of {bits} bits", *(str(each) for each in found)])
    heading = ["", *(f"{share:.0%} at {gigabits}" for gigabits in LINKS for share in (0.8, 0.5))]
    title = "Computed: the most GPUs (powers of two) that share one global batch, --sync-batchnorm off and rare looks"
    return Table(title, heading, lines)
