"""The training step, compiled: where that pays for itself, and going on without where it can't be done."""

import logging
import os
import shutil
import sys
from dataclasses import dataclass

import torch
from torch.utils._triton import has_triton

from aecli.errors import DeviceError
from aecli.models.base import Autoencoder, Losses
from aecli.runtime.device import Placement, is_out_of_memory


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
    """`model.loss`; once compiled, as one piece for whole batches.

    An epoch's short last batch is taken as it is: another shape would have to be compiled again.
    """

    def __init__(self, model: Autoencoder) -> None:
        """Start uncompiled."""
        self._model = model
        self._compiled = model.loss
        self._size: int | None = None

    @property
    def is_compiled(self) -> bool:
        """Whether whole batches are compiled."""
        return self._size is not None

    def __call__(self, batch: torch.Tensor) -> Losses:
        """Return the losses of a batch (N, 3, S, S)."""
        return self._compiled(batch) if len(batch) == self._size else self._model.loss(batch)

    def compile(self, placement: Placement, batch_size: int, image_size: int) -> str | None:
        """Compile forward and backward pass for batches of one shape; returns why it couldn't be done, if it couldn't.

        Nothing of the model changes; torch's global generator moves.
        """
        if missing := missing_compiler(placement.device):
            return f"{missing} is not here"
        batch = torch.zeros(batch_size, 3, image_size, image_size, device=placement.device)
        buffers = {name: buffer.clone() for name, buffer in self._model.named_buffers()}
        # The log warns of a CUDA toolkit without a device, where no device was asked for.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        try:
            # fallback_random: the same noise as uncompiled.
            self._compiled = torch.compile(self._model.loss, dynamic=False, options={"fallback_random": True})
            with placement.autocast():
                losses = self._compiled(batch.contiguous(memory_format=placement.memory_format))
            losses.total.backward()  # type: ignore[no-untyped-call]
        except (OSError, RuntimeError) as error:  # of the compiler; a model's own would come again, uncompiled
            if is_out_of_memory(error):
                raise
            self._compiled = self._model.loss
            return f"compiling failed: {_first_line(error)}"
        finally:
            self._model.zero_grad(set_to_none=True)
            for name, buffer in self._model.named_buffers():
                buffer.copy_(buffers[name])
        self._size = batch_size
        return None


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
