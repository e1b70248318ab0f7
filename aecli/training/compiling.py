"""The training step, compiled: where that pays for itself, and going on without where it can't be done."""

import logging
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._triton import has_triton

from aecli.errors import DeviceError
from aecli.models import registry
from aecli.models.base import Losses, Trainable
from aecli.runtime.device import Placement, is_out_of_memory
from aecli.runtime.distributed import Distributed
from aecli.training.inputs.micro_batches import draw_noise


@dataclass(frozen=True)
class _Economy:
    """Seconds that compiling takes, and those that it saves: a step, and an operation of the step's arithmetic.

    On a CPU the latter is a loss: large steps are faster op by op, from kernels made for these layers.
    """

    cost: float
    saved_a_step: float
    saved_an_operation: float


# Measured on two cores with AMX for the CPU (tests/benchmarks/RESULTS.md); for CUDA set by what is known of others.
_ECONOMIES = {"cpu": _Economy(30.0, 1e-2, -1.4e-13), "cuda": _Economy(60.0, 3e-3, 2e-15)}


def pays(device: torch.device, steps: int, flops_a_step: float) -> bool:
    """Whether compiling saves more time than it takes; decided by counting, so that it is decided alike every time."""
    economy = _ECONOMIES.get(device.type)
    if economy is None:
        return False
    return steps * (economy.saved_a_step + economy.saved_an_operation * flops_a_step) > economy.cost


def missing_compiler(device: torch.device) -> str | None:
    """What is missing for compiling on `device`, in words; None where nothing is known to be."""
    if device.type == "cuda":
        return None if has_triton() else "Triton"
    # What PyTorch's compiler calls.
    name = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    return None if shutil.which(name) else f"a C++ compiler ({name})"


def require_compiler(device: torch.device) -> None:
    """Refuse `--compile on` before any work; raises DeviceError saying what is missing."""
    if missing := missing_compiler(device):
        raise DeviceError(f"--compile on: {missing} is needed and not here; use --compile off")


class StepLoss:
    """`model.loss`; once compiled, as one piece for batches of one size; once replicated, in step with others.

    An epoch's short last batch is taken as it is: another shape would have to be compiled again.
    """

    def __init__(self, model: Trainable) -> None:
        """Start uncompiled, and alone."""
        self._model = model
        self._module = _LossModule(model)
        self._replica: DistributedDataParallel | None = None

    @property
    def is_compiled(self) -> bool:
        """Whether batches of the size meant are compiled."""
        return self._module.size is not None

    def __call__(self, images: Tensor, noise: Tensor | None = None) -> Losses:
        """Return the losses of examples (N, …), with the model's noise for them if it draws any."""
        losses: Losses = (self._replica or self._module)(images, noise)
        return losses

    def accumulating(self, more_to_come: bool) -> AbstractContextManager[Any]:
        """The context of a forward and backward pass; gradients wait for the other processes unless `more_to_come`."""
        return self._replica.no_sync() if self._replica is not None and more_to_come else nullcontext()

    def replicate(self, placement: Placement, count: int, image_size: int) -> None:
        """From here on, average gradients with those of all other processes, and begin with the first one's weights.

        After a first pass, PyTorch settles the order in which gradients are exchanged, and with it their rounding: that
        pass is taken here, of `count` black images, so that a run taken up again is rounded as one never stopped.
        """
        device = placement.device
        self._replica = DistributedDataParallel(
            self._module,
            device_ids=[device] if device.type == "cuda" else None,
            find_unused_parameters=not registry.is_built_in(type(self._model)),
            gradient_as_bucket_view=True,
        )
        self._try_out(placement, count, image_size)

    def compile(self, placement: Placement, count: int, image_size: int) -> str | None:
        """Compile forward and backward pass for `count` images; returns why it couldn't be done, if it couldn't.

        Nothing of the model changes; torch's global generator moves.
        """
        if missing := missing_compiler(placement.device):
            return f"{missing} is not here"
        # The log warns of a CUDA toolkit without a device, where no device was asked for.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        try:
            # fallback_random: the same noise as uncompiled.
            self._module.compiled = torch.compile(self._model.loss, dynamic=False, options={"fallback_random": True})
            self._module.size = count
            self._try_out(placement, count, image_size)
        except (OSError, RuntimeError) as error:  # of the compiler; a model's own would come again, uncompiled
            if is_out_of_memory(error):
                raise
            self.give_up_compiling()
            return f"compiling failed: {_first_line(error)}"
        return None

    def _try_out(self, placement: Placement, count: int, image_size: int) -> None:
        """Take a step's passes, of black images, and leave the model as it was."""
        images = torch.zeros(count, *self._model.example_shape(image_size), device=placement.device)
        buffers = {name: buffer.clone() for name, buffer in self._model.named_buffers()}
        try:
            noise = draw_noise(self._model, count, image_size)
            with placement.autocast():
                losses = self(images.contiguous(memory_format=placement.memory_format), noise)
            losses.total.backward()  # type: ignore[no-untyped-call]
        finally:
            self._model.zero_grad(set_to_none=True)
            for name, buffer in self._model.named_buffers():
                buffer.copy_(buffers[name])

    def give_up_compiling(self) -> None:
        """Take all batches as they are."""
        self._module.size = None


class _LossModule(nn.Module):
    """`model.loss` as a module's forward pass, which is what PyTorch watches for gradients to exchange."""

    def __init__(self, model: Trainable) -> None:
        super().__init__()
        self.model = model
        self.loss: Callable[..., Losses] = model.loss
        self.compiled: Callable[..., Losses] = model.loss
        self.size: int | None = None

    def forward(self, images: Tensor, noise: Tensor | None) -> Losses:
        loss = self.compiled if len(images) == self.size else self.loss
        return loss(images) if noise is None else loss(images, noise)


def synchronise(model: Trainable, mode: str, device: torch.device, distributed: Distributed) -> Trainable:
    """Have batch normalisation take its statistics over all processes, where `--sync-batchnorm` is not `off`.

    PyTorch has that for CUDA only; elsewhere each process takes those of its part of a batch, and the first one's
    running averages count. Parameters and their names stay.
    """
    if mode == "off" or device.type != "cuda" or distributed.world_size == 1:
        return model
    synchronised: Trainable = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return synchronised


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
