"""What each of several processes does for scaling.py. torchrun starts them; the first prints one JSON document."""

import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from aecli.configs import TrainConfig
from aecli.progress import never
from aecli.runtime.distributed import Distributed
from aecli.training.compiling import StepLoss
from aecli.training.inputs.micro_batches import draw_noise
from aecli.training.loop import train_epoch
from aecli.training.setup import Session, prepare
from tests.benchmarks.common import in_turns, middle

LOOKS = 20
EXCHANGES = 5


def main() -> None:
    """Do as the JSON in the first argument says: `config` of TrainConfig, and `repeats`; without them, only look."""
    asked = json.loads(sys.argv[1])
    if "config" not in asked:
        with Distributed() as distributed:
            looks = middle(_gathered(distributed) for _ in range(LOOKS))
            if distributed.is_main_process:
                print(json.dumps({"ranks": distributed.world_size, "look_s": looks}))
            return
    config = TrainConfig("vae", **{**asked["config"], "out": Path(asked["config"]["out"])})
    with ExitStack() as held:
        distributed = held.enter_context(Distributed())
        session = _session(config, distributed, held)
        found = measure(session, asked["repeats"])
        if distributed.is_main_process:
            print(json.dumps(found))


def _gathered(distributed: Distributed) -> float:
    """Seconds of what all processes tell each other in a look, without training."""
    distributed.all_gather_object(None)
    began = time.perf_counter()
    distributed.all_gather_object(
        {"stops": False, "sums": [0.123456789] * 3, "failure": None, "cursors": None, "steps": 1}
    )
    return time.perf_counter() - began


def _session(config: TrainConfig, distributed: Distributed, held: ExitStack) -> Session:
    steps = prepare(config, distributed, never, held)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            session: Session = end.value
            return session


def measure(session: Session, repeats: int) -> dict[str, Any]:
    """Seconds of a step and of its parts, each the best of its turns, and the bytes that a step exchanges."""
    model, device = session.state.model, session.placement.device
    found: dict[str, Any] = {"ranks": session.distributed.world_size, "images": session.config.batch_size}
    found["noise_s"] = _timed(session, lambda: draw_noise(model, 64, session.config.image_size)) / 64
    _epoch(session)  # makes kernels, and DDP's buckets as they stay
    if session.distributed.world_size == 1:
        found["step_s"] = min(_epoch(session) for _ in range(repeats))
        return found
    replica = session.compute_loss._replica
    assert replica is not None
    found |= _exchanged(replica)
    together, apart = in_turns([lambda: _epoch(session), lambda: _epoch_apart(session)], repeats)
    found |= {"step_s": min(together), "apart_s": min(apart)}
    found["look_s"] = min(_timed(session, session.exchange.sync) for _ in range(LOOKS))
    found["look_bytes"] = _look_bytes(session)
    whole = [torch.zeros(size // 4, device=device) for size in found["buckets"]]
    ways = [lambda: _all_reduce(whole), lambda: _all_reduce(whole, torch.bfloat16)]
    times = in_turns([lambda way=way: _timed(session, way) for way in ways], EXCHANGES)
    found |= {"all_reduce_s": min(times[0]), "all_reduce_bf16_s": min(times[1])}
    buffers = [buffer.clone() for buffer in model.buffers()]
    found["broadcast_s"] = min(_timed(session, lambda: _broadcast(buffers)) for _ in range(LOOKS))
    replica.register_comm_hook(None, bf16_compress_hook)
    found["step_bf16_s"] = min(_epoch(session) for _ in range(repeats))
    return found


def _exchanged(replica: DistributedDataParallel) -> dict[str, Any]:
    """Bytes of the gradients' buckets, in the order in which they go, and of the buffers that are broadcast."""
    told = replica._get_ddp_logging_data()
    sizes = told.get("rebuilt_bucket_sizes") or told["bucket_sizes"]
    return {
        "buckets": [int(size) for size in sizes.split(",")],
        "buffers": sum(buffer.numel() * buffer.element_size() for buffer in replica.buffers()),
    }


def _epoch(session: Session) -> float:
    """Seconds a step of an epoch's steps, by the loop that trains."""
    session.state.clock.batch = 0
    session.state.sums.zero_()

    def steps() -> None:
        for _ in train_epoch(session):
            pass

    return _timed(session, steps) / session.batches


def _epoch_apart(session: Session) -> float:
    """The same without exchanging gradients and buffers: how the processes get on beside each other."""

    def alone(loss: StepLoss, _more_to_come: bool) -> AbstractContextManager[Any]:
        return loss._replica.no_sync() if loss._replica is not None else nullcontext()

    with patch.object(StepLoss, "accumulating", alone):
        return _epoch(session)


def _broadcast(buffers: list[torch.Tensor]) -> None:
    """Send the first process's buffers to all, in as few messages as DDP does."""
    dist._broadcast_coalesced(dist.group.WORLD, buffers, 250 * 2**20, 0)


def _look_bytes(session: Session) -> int:
    """Bytes of JSON that a process tells the others when all look at how training stands."""
    told: list[Any] = []

    def gather(_distributed: Distributed, value: Any) -> list[Any]:
        told.append(value)
        return [value]

    with patch.object(Distributed, "all_gather_object", gather):
        session.exchange.sync()
    return len(json.dumps(told[0]))


def _all_reduce(buckets: list[torch.Tensor], dtype: torch.dtype = torch.float32) -> None:
    """Sum the buckets over all processes, as PyTorch's DDP and its hook for bf16 do."""
    sent = [bucket.to(dtype) for bucket in buckets]
    waiting = [dist.all_reduce(each, async_op=True) for each in sent]
    for bucket, each, work in zip(buckets, sent, waiting, strict=True):
        work.wait()
        if each is not bucket:
            bucket.copy_(each)


def _timed(session: Session, work: Callable[[], Any]) -> float:
    """Seconds from when all processes begin until this one is done."""
    session.distributed.all_gather_object(None)
    began = time.perf_counter()
    work()
    if session.placement.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
