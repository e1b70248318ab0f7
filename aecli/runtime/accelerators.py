"""Whether there may be an accelerator, told without importing PyTorch, which takes seconds."""

import sys
from pathlib import Path

# What the drivers of NVIDIA's and AMD's GPUs create, also in Windows' Linux and on a Jetson.
_DEVICE_FILES = ("nvidia[0-9]*", "nvhost*", "nvmap", "kfd", "dxg")


def may_have_accelerator() -> bool:
    """Return False only where PyTorch would find none: on Linux, without a device file of a GPU's driver."""
    return sys.platform != "linux" or any(any(Path("/dev").glob(pattern)) for pattern in _DEVICE_FILES)
