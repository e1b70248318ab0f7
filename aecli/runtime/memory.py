"""Memory: keeping it between steps, and how much of it was used."""

import ctypes
import re
import sys
from functools import cache
from pathlib import Path

import torch

if sys.platform != "win32":
    import resource

# mallopt(3)
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


@cache
def keep_freed_memory() -> bool:
    """Have glibc keep freed memory for the process's next tensors; returns whether it does. Elsewhere, do nothing.

    Its way is to hand large blocks back at once: then every tensor of every step is new memory to the system, which
    zeroes it page by page. In training on a CPU that takes as long as half of the arithmetic.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))


def peak_memory(device: torch.device) -> int | None:
    """Bytes: the most that tensors took on a CUDA device, else the process's largest resident size; None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    if sys.platform == "linux":  # whose getrusage begins with the largest size of the process that started this one
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8", errors="replace"))
        if found:
            return int(found[1]) * 1024
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024
