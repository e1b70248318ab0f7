"""The model of a training step: as it is, compiled, or replicated over processes."""

import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._triton import has_triton

from aecli.errors import DeviceError
from aecli.models import registry
from aecli.models.base import Prediction, Trainable
from aecli.runtime.device import Placement
from aecli.runtime.distributed import Distributed
from aecli.runtime.out_of_memory import is_out_of_memory


def missing_compiler(device: torch.device) -> str | None:
    """Return the name of what compiling on `device` needs and this machine lacks, or None."""
    if device.type == "cuda":
        return None if has_triton() else "Triton"
    name = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    return None if shutil.which(name) else f"a C++ compiler ({name})"


def require_compiler(device: torch.device) -> None:
    """Raise DeviceError, before any work, where `--compile on` is impossible."""
    if missing := missing_compiler(device):
        raise DeviceError(f"--compile on: {missing} is not installed\nhint: install it, or use --compile off")


class StepModel:
    """`model.predict`; compiled for batches of one size, or replicated with DistributedDataParallel, once asked to be.

    An epoch's short last batch is computed uncompiled: another shape would have to be compiled again.
    """

    def __init__(self, model: Trainable) -> None:
        """Start uncompiled and not replicated."""
        self.model = model
        self._module = _PredictModule(model)
        self._replica: DistributedDataParallel | None = None

    @property
    def is_compiled(self) -> bool:
        """Whether batches of full size are compiled."""
        return self._module.size is not None

    def __call__(self, images: Tensor, noise: Tensor | None = None) -> Prediction:
        """Return the prediction for examples (N, …), given the model's noise for them if it draws any."""
        prediction: Prediction = (self._replica or self._module)(images, noise)
        return prediction

    def accumulating(self, more_to_come: bool) -> AbstractContextManager[Any]:
        """Return the context of a forward and backward pass, without all-reduce of gradients where `more_to_come`."""
        return self._replica.no_sync() if self._replica is not None and more_to_come else nullcontext()

    def replicate(self, placement: Placement, count: int, image_size: int) -> None:
        """Average gradients over all processes from now on, starting from rank 0's weights.

        DDP rebuilds its buckets after the first backward pass, which changes the rounding of the all-reduce. That pass
        is made here, on `count` black images, so that a resumed run is rounded like one that never stopped.
        """
        device = placement.device
        self._replica = DistributedDataParallel(
            self._module,
            device_ids=[device] if device.type == "cuda" else None,
            find_unused_parameters=not registry.is_built_in(type(self.model)),
            gradient_as_bucket_view=True,
        )
        self._warm_up(placement, count, image_size)

    def compile(self, placement: Placement, count: int, image_size: int) -> str | None:
        """Compile the forward and backward pass of `count` images; return why that failed, or None.

        The model doesn't change; torch's global generator advances.
        """
        if missing := missing_compiler(placement.device):
            return f"{missing} is not installed"
        # It logs a warning about a CUDA toolkit without a device even where none was asked for.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        # On CUDA it recommends less precise products wherever one is in float32.
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
        try:
            # fallback_random: the same random numbers as uncompiled
            self._module.compiled = torch.compile(self.model.predict, dynamic=False, options={"fallback_random": True})
            self._module.size = count
            self._warm_up(placement, count, image_size)
        except (OSError, RuntimeError) as error:  # an error of the model itself comes again, uncompiled
            if is_out_of_memory(error):
                raise
            self.give_up_compiling()
            return f"compiling failed: {_first_line(error)}"
        except ImportError as error:  # a crash cut off a library in the compiler's cache
            self.give_up_compiling()
            return f"compiling failed: {_first_line(error)}; if that file of the compiler's cache is damaged, delete it"
        return None

    def _warm_up(self, placement: Placement, count: int, image_size: int) -> None:
        """Run the forward and backward pass of black images, and leave the model unchanged."""
        shape, dtype = (count, *self.model.example_shape(image_size)), self.model.example_dtype
        images = torch.zeros(shape, dtype=dtype, device=placement.device)
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        try:
            noise = self.model.draw_noise(count, image_size)
            with placement.autocast():
                prediction = self(images.contiguous(memory_format=placement.memory_format), noise)
            loss = torch.stack([prediction.output.float().mean(), *prediction.terms.values()]).sum()
            loss.backward()  # type: ignore[no-untyped-call]
        finally:
            self.model.zero_grad(set_to_none=True)
            for name, buffer in self.model.named_buffers():
                buffer.copy_(buffers[name])

    def give_up_compiling(self) -> None:
        """Compute all batches uncompiled."""
        self._module.size = None


class _PredictModule(nn.Module):
    """`model.predict` as a module's forward pass, as DistributedDataParallel needs it."""

    def __init__(self, model: Trainable) -> None:
        super().__init__()
        self.model = model
        self.compiled: Callable[..., Prediction] = model.predict
        self.size: int | None = None

    def forward(self, images: Tensor, noise: Tensor | None) -> Prediction:
        predict = self.compiled if len(images) == self.size else self.model.predict
        return predict(images) if noise is None else predict(images, noise)


def sync_batchnorm(model: Trainable, mode: str, device: torch.device, distributed: Distributed) -> Trainable:
    """Take batch statistics over all processes, unless `--sync-batchnorm` is `off`; parameters keep their names.

    PyTorch can do so on CUDA only. Elsewhere each process normalises with the statistics of its own part of a batch,
    and rank 0's running averages are kept.
    """
    if mode == "off" or device.type != "cuda" or distributed.world_size == 1:
        return model
    synced: Trainable = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return synced


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
