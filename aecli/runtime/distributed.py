"""Collectives and barriers between the processes of one command. With a single process they do nothing.

torchrun starts the processes. Collectives use PyTorch's process groups (NCCL on GPUs, gloo on CPUs). Barriers, counters
and failures go through a key-value store instead: a barrier there has no timeout, and can see that a process failed.
"""

import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from aecli.errors import AecliError, ConfigError, PeerError
from aecli.progress import Stopped, StopRequest, never
from aecli.runtime.launch import launch, set_reporting_rank

if TYPE_CHECKING:  # PyTorch is imported where there are several processes
    from torch import Tensor

Result = TypeVar("Result")

TIMEOUT_VARIABLE, DEFAULT_TIMEOUT = "AECLI_PEER_TIMEOUT", 600.0  # seconds
_STORE_TIMEOUT = 60.0  # seconds, to connect to the store and to disconnect
_POLL_SECONDS = 0.05
_GRACE_SECONDS = 2.0  # for the first process to fail to say so
_ARRIVED, _FAILED, _LEFT, _COUNTED = "arrived", "failed", "left", "counted"  # keys of the store
_instances = count()  # numbers the `Distributed` blocks, which all processes enter in the same order
_LOST_MESSAGE = "another of the processes that share this work ended, or can't be reached any more"
# In the messages of the bare RuntimeErrors that gloo and NCCL raise when a peer is gone or silent.
_LOST = ("closed by peer", "reset by peer", "pair closure", "Timed out waiting", "Broken pipe", "Connection refused",
         "gloo", "NCCL", "Socket", "No route to host", "unreachable")  # fmt: skip


class _Counters(Protocol):
    """What is needed of a key-value store of PyTorch's."""

    def add(self, key: str, amount: int, /) -> int:
        """Add to a counter, 0 at first, and return its new value."""


class _OwnCounters:
    """The counters of a process that is alone."""

    def __init__(self) -> None:
        self._lock, self._values = threading.Lock(), Counter[str]()

    def add(self, key: str, amount: int, /) -> int:
        with self._lock:
            self._values[key] += amount
            return self._values[key]


class Distributed:
    """The processes of this command, connected inside a `with` block; this one is `rank` of `world_size`.

    Collectives (`barrier`, `main_process_first`, `all_gather*`, `broadcast*`, `raise_first_failure`) must be called by
    all processes in the same order. They raise PeerError if another one is gone, or silent for `AECLI_PEER_TIMEOUT`
    seconds (600).
    """

    def __init__(self, should_stop: StopRequest = never) -> None:
        """Read torchrun's environment, without connecting. Once `should_stop()` is True, barriers raise Stopped."""
        self._should_stop = should_stop
        self._launch = launch()
        self.rank, self.world_size, self.attempt = self._launch.rank, self._launch.size, self._launch.attempt
        self._store: _Counters = _OwnCounters()  # until it connects to the others
        self._hosts_store = self.is_main_process and not self._launch.is_served
        self._owns_group = False
        self._barriers = 0

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0, the one process that writes files and reports."""
        return self.rank == 0

    def __enter__(self) -> "Distributed":
        if self.world_size > 1:
            with peer_loss_as_error():
                self._connect()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _at: object) -> None:
        if self.world_size == 1:
            return
        if isinstance(error, Exception) and not isinstance(error, Stopped):
            lost = error if isinstance(error, PeerError) else is_lost(error)
            set_reporting_rank(self._is_first_to_fail(bool(lost)))
            self._host_store_until(_FAILED, _GRACE_SECONDS)
            if lost and lost is not error:
                raise PeerError(_LOST_MESSAGE) from error
        else:
            self._disconnect()

    def _connect(self) -> None:
        import torch
        import torch.distributed as dist
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]

        limit = timedelta(seconds=peer_timeout())
        host, port = self._launch.address
        store = PrefixStore(f"aecli/{self.attempt}/{next(_instances)}", _connect_store(host, port, self._hosts_store))
        self._store = store
        self._barrier(limit.total_seconds())  # started together, they arrive within the timeout
        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(
                backend, store=PrefixStore("group", store), rank=self.rank, world_size=self.world_size,
                timeout=limit,
            )  # fmt: skip
            self._owns_group = True

    def _disconnect(self) -> None:
        if self._owns_group:
            import torch.distributed as dist

            dist.destroy_process_group()
        self._count(_LEFT, 1)
        self._host_store_until(_LEFT, _STORE_TIMEOUT)

    def _host_store_until(self, key: str, seconds: float) -> None:
        """In the process that hosts the store, wait until all processes have left or failed, as `key` says."""
        until = time.monotonic() + seconds
        while self._hosts_store and self._count(key, 0) < self.world_size and time.monotonic() < until:
            if key == _LEFT and self._count(_FAILED, 0):
                return
            time.sleep(_POLL_SECONDS)

    def _is_first_to_fail(self, is_consequence: bool) -> bool:
        """Record a failure in the store; a process that lost another one first gives that one a moment to do so.

        It happens in a thread, because a store whose host is gone may block.
        """
        found: list[int] = []

        def record() -> None:
            until = time.monotonic() + (_GRACE_SECONDS if is_consequence else 0.0)
            with suppress(RuntimeError):
                while time.monotonic() < until and not self._count(_FAILED, 0):
                    time.sleep(_POLL_SECONDS)
                found.append(self._count(_FAILED, 1))

        recording = threading.Thread(target=record, daemon=True)
        recording.start()
        recording.join(2 * _GRACE_SECONDS + 1.0)
        if found:
            return found[0] == 1
        # Without the store, one process that is still there reports: on each machine, or rank 1 where rank 0 hosted it.
        return self._launch.local_rank == 0 if self._launch.is_served else self.rank == 1

    def _count(self, key: str, amount: int) -> int:
        return int(self._store.add(key, amount))

    def add_to_counter(self, name: str, amount: int) -> int:
        """Atomically add `amount` to a counter that all processes see, 0 at first, and return its new value."""
        with peer_loss_as_error():
            return self._count(f"{_COUNTED}/{name}", amount)

    def raise_first_failure(self, failure: tuple[int, AecliError] | None) -> None:
        """Wait for all processes, and raise if any has failed; `failure` is the number of a work item, and its error.

        Raises:
            AecliError: this process's failure, if its number is the lowest.
            PeerError: another process's number is.
        """
        numbers = [number for number in self.all_gather_object(failure and failure[0]) if number is not None]
        if failure and failure[0] == min(numbers):
            raise failure[1]
        if numbers:
            set_reporting_rank(False)
            raise PeerError(_LOST_MESSAGE)

    def signal_failure(self) -> None:
        """Let the others' barriers fail, because this process leaves before the work is done."""
        with suppress(RuntimeError):
            self._count(_FAILED, 1)

    def barrier(self, may_stop: bool = True) -> None:
        """Wait, without a timeout, until every process has called this: one may be decoding images for all.

        Raises:
            Stopped: `should_stop()` returned True, and `may_stop`.
            PeerError: another process has failed meanwhile.
        """
        self._barrier(math.inf, may_stop)

    def _barrier(self, seconds: float, may_stop: bool = True) -> None:
        if self.world_size == 1:
            return
        self._barriers += 1
        key, until = f"{_ARRIVED}/{self._barriers}", time.monotonic() + seconds
        with peer_loss_as_error():
            arrived = self._count(key, 1)
            while arrived < self.world_size:
                if may_stop and self._should_stop():
                    raise Stopped
                has_failed = self._count(_FAILED, 0)  # read first: a process may arrive, go on, and then fail
                arrived = self._count(key, 0)
                if arrived < self.world_size and (has_failed or time.monotonic() > until):
                    raise PeerError(_LOST_MESSAGE)
                time.sleep(_POLL_SECONDS)

    def main_process_first(self, work: Callable[[], Result]) -> Result:
        """Return `work()`, called in rank 0 before the others, which may use what it downloaded or wrote."""
        if not self.is_main_process:
            self.barrier()
        found = work()
        if self.is_main_process:
            self.barrier()
        return found

    def all_gather(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """Return the arrays (n, …) of all processes, by rank; only n may differ between them."""
        if self.world_size == 1:
            return [values]
        import torch
        import torch.distributed as dist

        with peer_loss_as_error():
            mine = torch.from_numpy(np.ascontiguousarray(values))
            lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
            dist.all_gather(lengths, torch.tensor([len(mine)]))
            counts = [int(length) for length in lengths]
            padded = torch.zeros(max(counts), *mine.shape[1:], dtype=mine.dtype)
            padded[: len(mine)] = mine
            found = [torch.empty_like(padded) for _ in range(self.world_size)]
            if padded.numel():
                dist.all_gather(found, padded)
        return [each[:count].numpy() for each, count in zip(found, counts, strict=True)]

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank; they are pickled. For large arrays, `all_gather` copies less."""
        found = [value] * self.world_size
        if self.world_size > 1:
            import torch.distributed as dist

            with peer_loss_as_error():
                dist.all_gather_object(found, value)
        return found

    def broadcast_object(self, value: Any) -> Any:
        """Return rank 0's value; the others' are ignored."""
        return self.all_gather_object(value if self.is_main_process else None)[0]

    def broadcast_tensors(self, tensors: Iterable["Tensor"]) -> None:
        """Overwrite `tensors` with rank 0's values, in place."""
        if self.world_size > 1:
            import torch.distributed as dist

            with peer_loss_as_error():
                for tensor in tensors:
                    dist.broadcast(tensor, src=0)

    def sum_tensors(self, tensors: Sequence["Tensor"]) -> None:
        """Overwrite `tensors`, of one dtype and device, with their sums over all processes, in one exchange."""
        if self.world_size > 1 and tensors:
            import torch
            import torch.distributed as dist

            with peer_loss_as_error():
                flat = torch.cat([tensor.flatten() for tensor in tensors])
                dist.all_reduce(flat)
                sums = torch.split(flat, [tensor.numel() for tensor in tensors])
                for tensor, total in zip(tensors, sums, strict=True):
                    tensor.copy_(total.view_as(tensor))


@cache
def _connect_store(host: str, port: int, hosts: bool) -> Any:
    """Return the store of the processes, the same one as long as this process lives."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    timeout = timedelta(seconds=min(_STORE_TIMEOUT, peer_timeout()))
    return TCPStore(host, port, is_master=hosts, timeout=timeout, wait_for_workers=False)


@contextmanager
def peer_loss_as_error() -> Iterator[None]:
    """Convert PyTorch's errors about a lost process to PeerError, inside the block."""
    try:
        yield
    except RuntimeError as error:
        if launch().size == 1 or not is_lost(error):
            raise
        raise PeerError(_LOST_MESSAGE) from error


def is_lost(error: BaseException) -> bool:
    """Whether `error` is PyTorch's for a process that is gone or silent."""
    import torch.distributed as dist

    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _LOST)


def peer_timeout() -> float:
    """Return the seconds after which a silent process counts as lost: `AECLI_PEER_TIMEOUT`, or 600.

    Raises:
        ConfigError: the variable is not a number above 0.
    """
    text = os.environ.get(TIMEOUT_VARIABLE, "").strip()
    try:
        seconds = float(text) if text else DEFAULT_TIMEOUT
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < 1e9:
        raise ConfigError(f"{TIMEOUT_VARIABLE}={text}: expected a number of seconds above 0")
    return seconds
