"""The processes that share one command's work: who they are, and what they exchange. Alone, all of it does nothing.

torchrun starts them, and PyTorch's own process groups (NCCL on GPUs, gloo on CPUs) carry what they exchange. In their
store, which outlives each of them, they wait for each other without a limit, and see who failed first.
"""

import json
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from itertools import count
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from aecli.errors import AecliError, ConfigError, PeerError
from aecli.progress import Stopped, StopRequest, never
from aecli.runtime.launch import give_voice, launch

Result = TypeVar("Result")

TIMEOUT_VARIABLE, DEFAULT_TIMEOUT = "AECLI_PEER_TIMEOUT", 600.0  # seconds
_MEETING_SECONDS = 60.0  # for a store that torchrun has begun to serve
_POLL_SECONDS = 0.05
_GRACE_SECONDS = 2.0  # in which who failed first tells so
_ARRIVED, _FAILED, _LEFT, _COUNTED = "arrived", "failed", "left", "counted"
_worlds = count()  # what one process enters in turn, all of them enter
_LOST_MESSAGE = "another of the processes that share this work ended, or can't be reached any more"
# How gloo and NCCL say, in a bare RuntimeError, that another process is gone or silent.
_LOST = ("closed by peer", "reset by peer", "pair closure", "Timed out waiting", "Broken pipe", "Connection refused",
         "gloo", "NCCL", "Socket", "No route to host", "unreachable")  # fmt: skip


class Distributed:
    """The processes of this command, from `with` to its end; `rank` of `size`, of which the first is `is_main_process`.

    Every method that speaks of all processes must be called by all of them, in the same order. Raises PeerError where
    another one is gone, or silent for `AECLI_PEER_TIMEOUT` seconds (600).
    """

    def __init__(self, should_stop: StopRequest = never) -> None:
        """Look at what torchrun said; nobody is met yet. Waiting for the others ends as `should_stop` says."""
        self._should_stop = should_stop
        self._launch = launch()
        self.rank, self.world_size, self.attempt = self._launch.rank, self._launch.size, self._launch.attempt
        self._store: Store | None = None
        self._serves = self.is_main_process and not self._launch.is_served
        self._owns_group = False
        self._meetings = 0
        self._counted: Counter[str] = Counter()

    @property
    def is_main_process(self) -> bool:
        """Whether this is the one process that writes, draws and tells."""
        return self.rank == 0

    def __enter__(self) -> "Distributed":
        if self.world_size > 1:
            with peer_loss_as_error():
                self._meet()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _at: object) -> None:
        if self._store is None:
            return
        if isinstance(error, Exception) and not isinstance(error, Stopped):
            lost = error if isinstance(error, PeerError) else is_lost(error)
            give_voice(self._is_first_to_fail(bool(lost)))
            self._outlast(_FAILED, _GRACE_SECONDS)
            if lost and lost is not error:
                raise PeerError(_LOST_MESSAGE) from error
        else:
            self._leave()

    def _meet(self) -> None:
        limit = timedelta(seconds=peer_timeout())
        host, port = self._launch.address
        self._store = PrefixStore(f"aecli/{self.attempt}/{next(_worlds)}", _meeting_place(host, port, self._serves))
        self._barrier(limit.total_seconds())  # begun together, they are soon here
        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(
                backend, store=PrefixStore("group", self._store), rank=self.rank, world_size=self.world_size,
                timeout=limit,
            )  # fmt: skip
            self._owns_group = True

    def _leave(self) -> None:
        """End the group."""
        if self._owns_group:
            dist.destroy_process_group()
        self._count(_LEFT, 1)
        self._outlast(_LEFT, _MEETING_SECONDS)

    def _outlast(self, way: str, seconds: float) -> None:
        """Who serves the store stays until all others have gone the same way and are done with it."""
        until = time.monotonic() + seconds
        while self._serves and self._count(way, 0) < self.world_size and time.monotonic() < until:
            if way == _LEFT and self._count(_FAILED, 0):
                return
            time.sleep(_POLL_SECONDS)

    def _is_first_to_fail(self, is_consequence: bool) -> bool:
        """Note a failure; who lost another process leaves it a moment to say why.

        The store may be out of reach with its host, and would be waited for without an end: then nobody can be asked.
        """
        found: list[int] = []

        def note() -> None:
            until = time.monotonic() + (_GRACE_SECONDS if is_consequence else 0.0)
            with suppress(RuntimeError):
                while time.monotonic() < until and not self._count(_FAILED, 0):
                    time.sleep(_POLL_SECONDS)
                found.append(self._count(_FAILED, 1))

        asking = threading.Thread(target=note, daemon=True)
        asking.start()
        asking.join(2 * _GRACE_SECONDS + 1.0)
        if found:
            return found[0] == 1
        # One of those who are left: of each machine that lost the store's, or where the first process served it.
        return self._launch.local_rank == 0 if self._launch.is_served else self.rank == 1

    def _count(self, key: str, more: int) -> int:
        assert self._store is not None
        return int(self._store.add(key, more))

    def count(self, name: str, more: int) -> int:
        """Add `more` to the number that processes share by that name, at first 0; returns what it is then."""
        if self._store is None:
            self._counted[name] += more
            return self._counted[name]
        with peer_loss_as_error():
            return self._count(f"{_COUNTED}/{name}", more)

    def raise_first_failure(self, failure: tuple[int, AecliError] | None) -> None:
        """Wait for all, and go on if none has failed at its part of the work; `failure` says where, and how.

        Raises:
            AecliError: this process's failure, if it is the first in the order of the work.
            PeerError: another one's is.
        """
        places = [place for place in self.all_gather_object(failure and failure[0]) if place is not None]
        if failure and failure[0] == min(places):
            raise failure[1]
        if places:
            give_voice(False)
            raise PeerError(_LOST_MESSAGE)

    def abandon(self) -> None:
        """Tell the others that this process leaves in the middle of the work, for a reason of its own."""
        if self._store is not None:
            with suppress(RuntimeError):
                self._count(_FAILED, 1)

    def barrier(self, may_stop: bool = True) -> None:
        """Wait until every process is here, however long that takes one that decodes images for all.

        Raises:
            Stopped: the caller asked to, and `may_stop`.
            PeerError: another process has failed meanwhile.
        """
        self._barrier(math.inf, may_stop)

    def _barrier(self, seconds: float, may_stop: bool = True) -> None:
        if self.world_size == 1:
            return
        self._meetings += 1
        key, until = f"{_ARRIVED}/{self._meetings}", time.monotonic() + seconds
        with peer_loss_as_error():
            here = self._count(key, 1)
            while here < self.world_size:
                if may_stop and self._should_stop():
                    raise Stopped
                has_failed = self._count(_FAILED, 0)  # looked at first: who was here may have gone on to fail
                here = self._count(key, 0)
                if here < self.world_size and (has_failed or time.monotonic() > until):
                    raise PeerError(_LOST_MESSAGE)
                time.sleep(_POLL_SECONDS)

    def main_process_first(self, work: Callable[[], Result]) -> Result:
        """Return what `work` gives: called in the first process, which may download or write what the others find."""
        if not self.is_main_process:
            self.barrier()
        found = work()
        if self.is_main_process:
            self.barrier()
        return found

    def all_gather(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """Return the arrays (n, …) of all processes, by rank; n may differ, the rest of the shape and the type not."""
        if self.world_size == 1:
            return [values]
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
        """Return the JSON values of all processes, by rank."""
        if self.world_size == 1:
            return [value]
        parts = self.all_gather(np.frombuffer(json.dumps(value).encode(), dtype=np.uint8).copy())
        return [json.loads(part.tobytes()) for part in parts]

    def broadcast_object(self, value: Any) -> Any:
        """Return the first process's JSON value; what the others give counts for nothing."""
        return self.all_gather_object(value if self.is_main_process else None)[0]

    def broadcast_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the first one's values of `tensors`, in place."""
        if self.world_size > 1:
            with peer_loss_as_error():
                for tensor in tensors:
                    dist.broadcast(tensor, src=0)


@cache
def _meeting_place(host: str, port: int, serves: bool) -> Store:
    """The store in which this process meets the others, for as long as it lives."""
    timeout = timedelta(seconds=min(_MEETING_SECONDS, peer_timeout()))
    return TCPStore(host, port, is_master=serves, timeout=timeout, wait_for_workers=False)


@contextmanager
def peer_loss_as_error() -> Iterator[None]:
    """Turn what PyTorch says of a lost process into a PeerError, inside the block."""
    try:
        yield
    except RuntimeError as error:
        if launch().size == 1 or not is_lost(error):
            raise
        raise PeerError(_LOST_MESSAGE) from error


def is_lost(error: BaseException) -> bool:
    """Whether PyTorch says by `error` that another process is gone or silent."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST)


def peer_timeout() -> float:
    """Seconds after which a silent process counts as lost: `AECLI_PEER_TIMEOUT`, or 600.

    Raises:
        ConfigError: the variable is no number above 0.
    """
    text = os.environ.get(TIMEOUT_VARIABLE, "").strip()
    try:
        seconds = float(text) if text else DEFAULT_TIMEOUT
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < 1e9:
        raise ConfigError(f"{TIMEOUT_VARIABLE}={text}: expected a number of seconds above 0")
    return seconds
