"""Threads: worker pools, PyTorch's threads divided among them, and NumPy's BLAS in one."""

import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from itertools import islice
from threading import Lock
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

from aecli.runtime.launch import launch

Item = TypeVar("Item")
Result = TypeVar("Result")


def device_lock(device_type: str) -> AbstractContextManager[Any]:
    """Return what workers hold to compute on a device: a lock on an accelerator, nothing on a `cpu`."""
    return nullcontext() if device_type == "cpu" else Lock()


class _Share:
    """The threads that a worker may use where PyTorch, which counts its own, is not imported."""

    threads: int | None = None


def thread_count() -> int:
    """Return how many threads a computation of the calling thread may use: PyTorch's number, where it is imported."""
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch is not None else _Share.threads or worker_count(None)


@contextmanager
def limit_threads(workers: int) -> Iterator[None]:
    """Divide the threads of PyTorch, where it is imported, among `workers` threads started in the block.

    With more of them than cores, most of their time goes into waiting for each other. BLAS computes in one thread, as
    in `single_threaded_blas`. Not for use by several threads at once.
    """
    torch, before, threads = sys.modules.get("torch"), _Share.threads, thread_count()
    share = max(1, threads // max(1, workers))
    with single_threaded_blas():
        _Share.threads = share
        if torch is not None:
            torch.set_num_threads(share)
        try:
            yield
        finally:
            _Share.threads = before
            if torch is not None:
                torch.set_num_threads(threads)


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Compute NumPy's matrix products in the thread that asks for them, in all threads.

    How BLAS splits a product over threads changes its last bits. The limit is the process's: a block that ends gives
    the others back what it found, so it begins in the main thread, or inside another such block.
    """
    with _blas().limit(limits=1):
        yield


@cache
def _blas() -> ThreadpoolController:
    """The libraries behind NumPy's matrix products; finding them takes milliseconds."""
    return ThreadpoolController().select(user_api="blas")


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
