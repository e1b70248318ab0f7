"""A single training step, as the loop takes it and a dry run times it, and whether it is compiled."""

from collections.abc import Generator, Mapping
from typing import Any

import torch
from torch import Tensor

from aecli.errors import DeviceError
from aecli.models.flops import TRAINING_FACTOR, forward_flops
from aecli.progress import Notice, Stopped, StopRequest
from aecli.training.compiling import StepLoss
from aecli.training.events import TrainReport
from aecli.training.inputs.micro_batches import largest_micro_batch, micro_batches
from aecli.training.plan import Plan
from aecli.training.state import TrainState
from aecli.training.sync import NonFiniteDetector

AUTO_COMPILE_STEPS = 10_000  # compiling takes about as long as 5,000 small steps save
MAX_CPU_FLOPS = 5e10  # a step; larger steps are slower compiled (tests/benchmarks/RESULTS.md)


def train_step(
    images: Tensor, count: int, plan: Plan, state: TrainState, compute_loss: StepLoss, detector: NonFiniteDetector
) -> None:
    """Take one optimizer step, without waiting for the device.

    `images` (n, 3, S, S) are this process's part of a batch of `count` images; a prior's are latents.
    """
    distributed = plan.distributed
    total = torch.zeros_like(state.sums[0])
    for micro in micro_batches(images, count, state.counters.step, state.model, plan.config, distributed):
        with compute_loss.accumulating(not micro.is_last):
            with plan.placement.autocast():
                losses = compute_loss(micro.images, micro.noise)
            # DDP averages gradients over processes, but the loss is the mean over images.
            scaled = state.scaler.scale(losses.total * (micro.weight * distributed.world_size))
            scaled.backward()  # type: ignore[no-untyped-call]
        state.add(losses, micro.weight)
        total += losses.total.detach()
    detector.update(total)
    state.optimizer_step()
    state.counters.step += 1
    state.counters.batch += 1


def compile_step(
    plan: Plan, state: TrainState, batches: int, recorded: Mapping[str, Any] | None, should_stop: StopRequest
) -> Generator[TrainReport, None, StepLoss]:
    """Return the step's loss, compiled and replicated as the plan says; `batches` are those of an epoch.

    Raises:
        DeviceError: `--compile on`, and compiling failed.
        Stopped: `should_stop` returned True.
    """
    config, distributed = plan.config, plan.distributed
    compute_loss = StepLoss(state.model)
    size = (largest_micro_batch(config, distributed), config.data.image_size)
    if _should_compile(plan, state, batches, recorded):
        yield Notice("compiling the training step, which takes up to a minute")
        failure = compute_loss.compile(plan.placement, *size)
        if should_stop():  # Ctrl-C reaches the compiler's processes too: their failure means nothing
            raise Stopped
        distributed.barrier()
        failure = next((one for one in distributed.all_gather_object(failure) if one), None)
        if failure and config.run.compile == "on":
            raise DeviceError(f"--compile on: {failure}\nhint: use --compile off")
        if failure:
            compute_loss.give_up_compiling()
            yield Notice(f"training uncompiled: {failure}")
    if distributed.world_size > 1:
        compute_loss.replicate(plan.placement, *size)
    return compute_loss


def _should_compile(plan: Plan, state: TrainState, batches: int, recorded: Mapping[str, Any] | None) -> bool:
    """Whether to compile; under `auto`, the same run continued on the same device stays as it began, bit for bit."""
    mode, optimization, device = plan.config.run.compile, plan.config.optimization, plan.placement.device
    if mode != "auto":
        return mode == "on"
    is_same_run = recorded and all(recorded["options"].get(key) == plan.options[key] for key in ("epochs", "steps"))
    if recorded and is_same_run and recorded["placement"]["device"] == str(device):
        return bool(recorded["placement"]["compile"])
    steps_left = optimization.total_steps(batches) - state.counters.step
    flops = TRAINING_FACTOR * forward_flops(state.model, plan.config.data.image_size) * optimization.batch_size
    return compiling_pays(device, steps_left, flops / plan.distributed.world_size)


def compiling_pays(device: torch.device, steps: int, step_flops: float) -> bool:
    """Whether compiling saves time over so many steps, by a rule that gives the same answer every time.

    On a CPU, small steps took 0.77 to 0.82 of the time compiled, large ones 1.09; on CUDA it is not measured.
    """
    is_fit = device.type == "cuda" or (device.type == "cpu" and step_flops < MAX_CPU_FLOPS)
    return is_fit and steps >= AUTO_COMPILE_STEPS
