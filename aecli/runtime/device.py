"""Device, precision and memory format."""

import os
import platform
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from aecli.errors import DeviceError
from aecli.runtime.launch import launch
from aecli.runtime.memory import keep_freed_memory

_DETERMINISTIC_WORKSPACES = (":4096:8", ":16:8")  # with which cuBLAS is deterministic, by NVIDIA's documentation
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Placement:
    """Where and how a model runs: `precision` is that of autocast; weights stay float32."""

    device: torch.device
    precision: str
    channels_last: bool

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory layout of weights and images."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def for_training(self, model: nn.Module) -> "Placement":
        """Return the placement with the memory format in which `model` trains fastest.

        On CUDA, PyTorch copies channels_last features before GroupNorm: without, a step of `kl` takes 0.83 of the time.
        """
        copies = self.device.type == "cuda" and any(isinstance(layer, nn.GroupNorm) for layer in model.modules())
        return replace(self, channels_last=False) if copies else self

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the autocast context for the forward pass."""
        reduced = self.precision != "fp32"
        return torch.autocast(self.device.type, dtype=_DTYPES[self.precision] if reduced else None, enabled=reduced)

    def describe(self) -> dict[str, str]:
        """Return device, precision and memory format as strings, for config.json and tables."""
        layout = "channels_last" if self.channels_last else "contiguous"
        return {"device": str(self.device), "precision": self.precision, "memory_format": layout}


def resolve_device(wanted: str = "auto") -> torch.device:
    """Resolve `auto|cpu|mps|cuda[:N]`; `auto` picks CUDA, then MPS, then the CPU.

    Under torchrun each process gets the CUDA device of its local rank. For a CPU, the process keeps freed memory from
    then on (see `keep_freed_memory`).

    Raises:
        DeviceError: this machine doesn't have that device.
    """
    if wanted in ("auto", "cuda") and launch().size > 1 and torch.cuda.is_available():
        wanted = f"cuda:{launch().local_rank}"
    elif wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    elif launch().size > 1 and wanted.startswith(("cuda:", "mps")):
        raise DeviceError(f"--device {wanted}: torchrun's processes can't share one\nhint: use auto, cuda or cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"--device {wanted}: no CUDA device is available\nhint: use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"--device {wanted}: this machine has CUDA devices 0 to {torch.cuda.device_count() - 1}")
    if device.type == "cuda" and launch().size > 1:
        torch.cuda.set_device(device)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("--device mps: MPS is not available\nhint: use --device cpu")
    if device.type == "cpu":
        keep_freed_memory()
    return device


def seed_devices(seed: int) -> None:
    """Seed torch's generators on the CPU and on the devices in use.

    `torch.manual_seed` records for each kind of device that isn't in use where it was called from, which takes up to
    half a millisecond.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def multiplies_bf16_fast(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 natively (on a CPU: AMX or AVX-512 BF16 instructions)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return False


def place(device: str = "auto", precision: str = "auto", training: bool = False) -> Placement:
    """Resolve the device and precision for a model.

    `auto` precision is bf16 in training where the hardware multiplies it natively, else fp32: metrics are quoted.

    Raises:
        DeviceError: the device is not available, or can't train in that precision.
    """
    found = resolve_device(device)
    if precision == "auto":
        precision = "bf16" if training and multiplies_bf16_fast(found) else "fp32"
    if precision == "fp32":
        # TensorFloat-32 would silently round the mantissa of fp32 convolutions to 10 bits.
        torch.backends.cudnn.allow_tf32 = False
    if found.type == "mps" and precision == "fp16" and training:
        raise DeviceError("--precision fp16: not supported for training on mps\nhint: use bf16 or fp32")
    return Placement(found, precision, channels_last=found.type != "mps")


def make_deterministic() -> None:
    """Make torch use deterministic algorithms only, and raise an error where there is none."""
    if os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in _DETERMINISTIC_WORKSPACES:  # read at the first CUDA computation
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = _DETERMINISTIC_WORKSPACES[0]
    os.environ["TORCHINDUCTOR_DETERMINISTIC"] = "1"  # read when the compiler is imported, which else picks by timing
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)


def hardware() -> dict[str, Any]:
    """Describe the machine, for config.json."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"system": f"{platform.system()} {platform.machine()}", "threads": torch.get_num_threads(), "gpu": gpu}
