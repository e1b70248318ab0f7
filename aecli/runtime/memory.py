"""Memory: keeping it allocated between steps, and peak usage."""

import ctypes
import re
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if sys.platform != "win32":
    import resource

if TYPE_CHECKING:
    import torch

# Parameters of mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


@cache
def keep_freed_memory() -> bool:
    """Make glibc's malloc keep freed memory for the process's next tensors; return whether it does.

    By default it returns large blocks to the system at once: then every tensor of every step page-faults into zeroed
    memory, which in training on a CPU takes half as long as the arithmetic.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))


def peak_memory(device: "torch.device") -> int | None:
    """Return peak bytes: of tensors on a CUDA device, else the process's peak resident size; None on Windows."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    if sys.platform == "linux":  # its getrusage starts from the peak of the parent process
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8", errors="replace"))
        if found:
            return int(found[1]) * 1024
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024
