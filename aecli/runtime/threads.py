"""How the processor's cores are shared out."""

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


Item = TypeVar("Item")


Result = TypeVar("Result")


def worker_count(workers: int | None) -> int:
    """`workers`, or for None this process's share of the CPUs that it may use, at least 1 and at most 16."""
    if workers is not None:
        return workers
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, max(1, cpus // launch().local_size))


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None, ahead: int | None = None
) -> Generator[Result, None, None]:
    """`map` in threads, results in the order of `items`.

    At most `ahead` items (default: two a worker) are begun or done but not yet taken. An error in `function` is raised
    where its result would come. Closing the generator cancels what has not begun and waits for what has.
    """
    count = worker_count(workers)
    waiting = iter(items)
    pool = ThreadPoolExecutor(count, thread_name_prefix="aecli-map")
    try:
        in_flight: deque[Future[Result]] = deque()
        in_flight.extend(pool.submit(function, item) for item in islice(waiting, ahead or 2 * count))
        while in_flight:
            result = in_flight.popleft().result()
            in_flight.extend(pool.submit(function, item) for item in islice(waiting, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
