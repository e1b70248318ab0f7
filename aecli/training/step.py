"""A single training step, as the loop takes it and a dry run times it, and whether it is compiled."""

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from aecli.data.batches import rank_slice
from aecli.errors import DeviceError
from aecli.models.flops import TRAINING_FACTOR, forward_flops
from aecli.progress import Notice, Stopped, StopRequest
from aecli.training.compiling import StepModel
from aecli.training.events import TrainReport
from aecli.training.inputs.micro_batches import MicroBatch, largest_micro_batch, micro_batches
from aecli.training.learner import Learner
from aecli.training.plan import Plan
from aecli.training.state import TrainState, seed_step
from aecli.training.sync import NonFiniteDetector

_AVERAGES = 2  # spawn key of the seed; 0 and 1 are those of micro_batches
AUTO_COMPILE_STEPS = 10_000  # compiling takes about as long as 5,000 small steps save
MAX_CPU_FLOPS = 5e10  # a step; larger steps are slower compiled (tests/benchmarks/RESULTS.md)


def train_step(
    images: Tensor, count: int, lr: float, plan: Plan, state: TrainState, model: StepModel, detector: NonFiniteDetector
) -> None:
    """Take one optimizer step of the model, and then of each critic, without waiting for the device.

    `images` (n, 3, S, S) are this process's part of a batch of `count` images; a prior's are latents.
    """
    distributed, objective, step = plan.distributed, state.objective, state.counters.step
    made: list[tuple[Tensor, MicroBatch]] = []
    observed: list[Mapping[str, Tensor]] = []
    for micro in micro_batches(images, count, step, state.model, plan.config, distributed):
        with model.accumulating(not micro.is_last):
            with plan.placement.autocast():
                prediction = model(micro.images, micro.noise)
            losses = objective.model_loss(prediction, step)
            if prediction.observed:
                observed.append(prediction.observed)
            # DDP averages gradients over processes, but the loss is the mean over images.
            state.learner.backward(losses.total * (micro.weight * distributed.world_size))
        state.add(losses.total, {**losses.parts, **prediction.stats}, micro.weight)
        if state.critics:
            made.append((prediction.output.detach(), micro))
    norms = [state.learner.step(lr)]
    for name, critic in state.critics.items():  # none in the report's recipe
        norms.append(_critic_step(name, critic, made, lr, plan, state) if objective.is_adversarial(step) else None)
    detector.update(norms)
    if observed:
        _update_averages(observed, count, plan, state)
    state.lr = lr
    state.update_ema()
    state.counters.step += 1
    state.counters.batch += 1


def _critic_step(
    name: str, critic: Learner, made: Sequence[tuple[Tensor, MicroBatch]], lr: float, plan: Plan, state: TrainState
) -> Tensor | None:
    """Take a critic's step on the same images and reconstructions; return the norm of its gradient."""
    for output, micro in made:
        losses = state.objective.critic_loss(name, output, micro.images, micro.weight)
        critic.backward(losses.total * micro.weight)
        state.add(None, losses.parts, micro.weight)
    plan.distributed.sum_tensors([each.grad for each in critic.parameters if each.grad is not None])
    norm = critic.step(lr)
    state.objective.end_step(name, plan.distributed)
    return norm


def _update_averages(observed: Sequence[Mapping[str, Tensor]], count: int, plan: Plan, state: TrainState) -> None:
    """Update the averages that the model keeps itself, from all `count` examples of the step over all processes."""
    distributed = plan.distributed
    mine = {name: torch.cat([each[name] for each in observed]) for name in observed[0]}
    first, _ = rank_slice(count, distributed.rank, distributed.world_size)
    seed_step(plan.config.run.seed, state.counters.step, _AVERAGES)
    sums = state.model.step_sums(mine, first, count)
    distributed.sum_tensors(sums)
    if count < distributed.world_size:  # every process took all of them
        sums = [each / distributed.world_size for each in sums]
    state.model.after_step(sums)


def compile_step(
    plan: Plan, state: TrainState, batches: int, recorded: Mapping[str, Any] | None, should_stop: StopRequest
) -> Generator[TrainReport, None, StepModel]:
    """Return the step's model, compiled and replicated as the plan says; `batches` are those of an epoch.

    Raises:
        DeviceError: `--compile on`, and compiling failed.
        Stopped: `should_stop` returned True.
    """
    config, distributed = plan.config, plan.distributed
    model = StepModel(state.model)
    size = (largest_micro_batch(config, distributed), config.data.image_size)
    if _should_compile(plan, state, batches, recorded):
        yield Notice("compiling the training step, which takes up to a minute")
        failure = model.compile(plan.placement, *size)
        if should_stop():  # Ctrl-C reaches the compiler's processes too: their failure means nothing
            raise Stopped
        distributed.barrier()
        failure = next((one for one in distributed.all_gather_object(failure) if one), None)
        if failure and config.run.compile == "on":
            raise DeviceError(f"--compile on: {failure}\nhint: use --compile off")
        if failure:
            model.give_up_compiling()
            yield Notice(f"training uncompiled: {failure}")
    if distributed.world_size > 1 and state.learner.parameters:
        model.replicate(plan.placement, *size)
    return model


def _should_compile(plan: Plan, state: TrainState, batches: int, recorded: Mapping[str, Any] | None) -> bool:
    """Whether to compile; under `auto`, the same run continued on the same device stays as it began, bit for bit."""
    mode, optimization, device = plan.config.run.compile, plan.config.optimization, plan.placement.device
    if mode != "auto":
        return mode == "on"
    is_same_run = recorded and all(recorded["options"].get(key) == plan.options[key] for key in ("epochs", "steps"))
    if recorded and is_same_run and recorded["placement"]["device"] == str(device):
        return bool(recorded["placement"]["compile"])
    steps_left = optimization.total_steps(batches) - state.counters.step
    if steps_left < AUTO_COMPILE_STEPS:
        return False  # whatever a step takes, which is counted for longer than a short run lasts
    flops = TRAINING_FACTOR * forward_flops(state.model, plan.config.data.image_size) * optimization.batch_size
    return compiling_pays(device, steps_left, flops / plan.distributed.world_size)


def compiling_pays(device: torch.device, steps: int, step_flops: float) -> bool:
    """Whether compiling saves time over so many steps, by a rule that gives the same answer every time.

    On a CPU, small steps took 0.77 to 0.82 of the time compiled, large ones 1.09; on CUDA (an H200) 0.66 to 0.84, after
    a compilation of 16 to 30 s, which 1,400 to 7,500 steps make up for.
    """
    is_fit = device.type == "cuda" or (device.type == "cpu" and step_flops < MAX_CPU_FLOPS)
    return is_fit and steps >= AUTO_COMPILE_STEPS
