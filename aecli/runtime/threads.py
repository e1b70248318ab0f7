"""Threads: worker pools, and PyTorch's own threads divided among them."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from threading import Lock
from typing import Any, TypeVar

import torch

from aecli.runtime.launch import launch

Item = TypeVar("Item")
Result = TypeVar("Result")


def device_lock(device: torch.device) -> AbstractContextManager[Any]:
    """Return what workers hold to compute on `device`: a lock on an accelerator, nothing on a CPU."""
    return nullcontext() if device.type == "cpu" else Lock()


@contextmanager
def limit_torch_threads(workers: int) -> Iterator[None]:
    """Divide PyTorch's intra-op threads among `workers` threads started inside the block.

    With more of them than cores, most of their time goes into waiting for each other.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // max(1, workers)))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def worker_count(workers: int | None) -> int:
    """Return `workers`; for None this process's part of the available CPUs, from 1 to 16."""
    if workers is not None:
        return workers
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, max(1, cpus // launch().local_size))


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None, ahead: int | None = None
) -> Generator[Result, None, None]:
    """`map` in threads, results in the order of `items`.

    At most `ahead` items (default: two per worker) are submitted but not yet yielded. An error in `function` is raised
    in place of its result. Closing the generator cancels pending items and waits for running ones.
    """
    count = worker_count(workers)
    remaining = iter(items)
    pool = ThreadPoolExecutor(count, thread_name_prefix="aecli-map")
    try:
        in_flight: deque[Future[Result]] = deque()
        in_flight.extend(pool.submit(function, item) for item in islice(remaining, ahead or 2 * count))
        while in_flight:
            result = in_flight.popleft().result()
            in_flight.extend(pool.submit(function, item) for item in islice(remaining, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
