"""How the processor's cores are shared out."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock
from typing import Any

import torch


def taking_turns(device: torch.device) -> AbstractContextManager[Any]:
    """What workers enter to compute on `device`: a lock where they share it; on a CPU nothing, each has its threads."""
    return nullcontext() if device.type == "cpu" else Lock()


@contextmanager
def sharing_threads(workers: int) -> Iterator[None]:
    """Let each of `workers` threads begun inside the block have its share of PyTorch's own threads.

    Threads that compute for several workers at once spend most of their time waiting for each other.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // max(1, workers)))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
