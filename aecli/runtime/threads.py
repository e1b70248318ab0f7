"""How the processor's cores are shared out."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
