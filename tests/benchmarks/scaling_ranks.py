"""The processes that scaling.py starts through torchrun; rank 0 prints one JSON document."""

import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from aecli.configs import TrainConfig
from aecli.progress import never
from aecli.runtime.distributed import Distributed
from aecli.training.compiling import StepModel
from aecli.training.divergence import DivergenceMonitor
from aecli.training.loop import train_epoch
from aecli.training.session import Session
from aecli.training.setup import prepare
from tests.benchmarks.common import interleave
from tests.support.data import finish

SYNCS = 20
ALL_REDUCES = 5


def main() -> None:
    """Read a request from the first argument, in JSON: `config` of TrainConfig and `repeats`, or {} to time syncs."""
    request = json.loads(sys.argv[1])
    if "config" not in request:
        with Distributed() as distributed:
            sync_s = median(_all_gather_s(distributed) for _ in range(SYNCS))
            if distributed.is_main_process:
                print(json.dumps({"ranks": distributed.world_size, "sync_s": sync_s}))
            return
    config = TrainConfig("vae", **{**request["config"], "out": Path(request["config"]["out"])})
    with ExitStack() as held:
        distributed = held.enter_context(Distributed())
        session = _session(config, distributed, held)
        found = measure(session, request["repeats"])
        if distributed.is_main_process:
            print(json.dumps(found))


def _all_gather_s(distributed: Distributed) -> float:
    """Seconds of an all-gather of as many bytes as a loss sync takes, without training."""
    distributed.all_gather_object(None)
    start = time.perf_counter()
    distributed.all_gather_object(
        {"stops": False, "sums": [0.123456789] * 3, "failure": None, "stream_positions": None, "steps": 1}
    )
    return time.perf_counter() - start


def _session(config: TrainConfig, distributed: Distributed, held: ExitStack) -> Session:
    return finish(prepare(config, distributed, never, held))[0]


def measure(session: Session, repeats: int) -> dict[str, Any]:
    """Seconds of a step and of its parts, the best of each, and the bytes that a step exchanges."""
    model, device = session.state.model, session.plan.placement.device
    found: dict[str, Any] = {"ranks": session.distributed.world_size, "images": session.config.optimization.batch_size}
    found["noise_s"] = _timed(session, lambda: model.draw_noise(64, session.config.data.image_size)) / 64
    _epoch(session)  # warm-up: after it DDP has rebuilt its buckets
    if session.distributed.world_size == 1:
        found["step_s"] = min(_epoch(session) for _ in range(repeats))
        return found
    replica = session.step_model._replica
    assert replica is not None
    buckets = [torch.zeros(size // 4, device=device) for size in _bucket_sizes(replica)]
    found["gradient_bytes"] = sum(each.nbytes for each in buckets)
    step, no_sync = interleave([lambda: _epoch(session), lambda: _epoch_without_sync(session)], repeats)
    found |= {"step_s": min(step), "no_sync_s": min(no_sync)}
    found["sync_s"] = min(_timed(session, session.sync.sync) for _ in range(SYNCS))
    ways = [lambda: _all_reduce(buckets), lambda: _all_reduce(buckets, torch.bfloat16)]
    times = interleave([lambda way=way: _timed(session, way) for way in ways], ALL_REDUCES)
    found |= {"all_reduce_s": min(times[0]), "all_reduce_bf16_s": min(times[1])}
    buffers = [buffer.clone() for buffer in model.buffers()]
    found["broadcast_s"] = min(_timed(session, lambda: _broadcast(buffers)) for _ in range(SYNCS))
    replica.register_comm_hook(None, bf16_compress_hook)
    found["step_bf16_s"] = min(_epoch(session) for _ in range(repeats))
    return found


def _bucket_sizes(replica: DistributedDataParallel) -> list[int]:
    """Bytes of DDP's gradient buckets, in the order in which they are reduced."""
    logged = replica._get_ddp_logging_data()
    return [int(size) for size in (logged.get("rebuilt_bucket_sizes") or logged["bucket_sizes"]).split(",")]


def _epoch(session: Session) -> float:
    """Seconds a step, over an epoch of aecli's own loop."""
    session.state.counters.batch = 0
    session.state.sums.zero_()

    def steps() -> None:
        for _ in train_epoch(session, DivergenceMonitor(session.state.names, {})):
            pass

    return _timed(session, steps) / session.batches


def _epoch_without_sync(session: Session) -> float:
    """The same without exchanging gradients and buffers: what sharing one machine costs by itself."""

    def no_sync(loss: StepModel, _more_to_come: bool) -> AbstractContextManager[Any]:
        return loss._replica.no_sync() if loss._replica is not None else nullcontext()

    with patch.object(StepModel, "accumulating", no_sync):
        return _epoch(session)


def _broadcast(buffers: list[torch.Tensor]) -> None:
    """Broadcast the buffers from rank 0, coalesced as DDP does."""
    dist._broadcast_coalesced(dist.group.WORLD, buffers, 250 * 2**20, 0)


def _all_reduce(buckets: list[torch.Tensor], dtype: torch.dtype = torch.float32) -> None:
    """All-reduce the buckets, as DDP and its bf16 hook do."""
    sent = [bucket.to(dtype) for bucket in buckets]
    pending = [dist.all_reduce(each, async_op=True) for each in sent]
    for bucket, each, work in zip(buckets, sent, pending, strict=True):
        work.wait()
        if each is not bucket:
            bucket.copy_(each)


def _timed(session: Session, work: Callable[[], Any]) -> float:
    """Seconds of `work` in this process, begun by all processes together."""
    session.distributed.all_gather_object(None)
    start = time.perf_counter()
    work()
    if session.plan.placement.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
