"""What this machine has: device, precision, memory format."""

import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from aecli._version import __version__
from aecli.errors import DeviceError
from aecli.runtime.launch import launch
from aecli.runtime.memory import keep_freed_memory

# On a CPU: the allocator; C++; oneDNN, which has one message for all that keeps it from making a kernel.
_NO_MEMORY = ("allocate memory", "std::bad_alloc", "could not create a primitive")
_EXACT_WORKSPACES = (":4096:8", ":16:8")  # with which cuBLAS gives the same bits twice, as NVIDIA says
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Placement:
    """Where a model runs and how: `precision` is that of the arithmetic under autocast; weights stay float32."""

    device: torch.device
    precision: str
    channels_last: bool

    @property
    def memory_format(self) -> torch.memory_format:
        """The layout in which weights and images are kept."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which the model computes."""
        reduced = self.precision != "fp32"
        return torch.autocast(self.device.type, dtype=_DTYPES[self.precision] if reduced else None, enabled=reduced)

    def describe(self) -> dict[str, str]:
        """The same in words, for config.json and tables."""
        layout = "channels_last" if self.channels_last else "contiguous"
        return {"device": str(self.device), "precision": self.precision, "memory_format": layout}


def resolve_device(wanted: str = "auto") -> torch.device:
    """Turn `auto|cpu|mps|cuda[:N]` into a device; `auto` picks CUDA, then MPS, then the CPU.

    Of several processes that torchrun started, each gets the CUDA device of its number on its machine.

    To compute on a CPU, the process keeps its freed memory from then on (see `keep_freed_memory`).

    Raises:
        DeviceError: that device is not on this machine.
    """
    if wanted in ("auto", "cuda") and launch().size > 1 and torch.cuda.is_available():
        wanted = f"cuda:{launch().local_rank}"
    elif wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    elif launch().size > 1 and wanted.startswith(("cuda:", "mps")):
        raise DeviceError(f"--device {wanted}: torchrun's processes can't share one; use auto, cuda or cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"--device {wanted}: no CUDA device is to be had here; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"--device {wanted}: this machine has CUDA devices 0 to {torch.cuda.device_count() - 1}")
    if device.type == "cuda" and launch().size > 1:
        torch.cuda.set_device(device)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("--device mps: not to be had here; use --device cpu")
    if device.type == "cpu":
        keep_freed_memory()
    return device


def multiplies_bf16_fast(device: torch.device) -> bool:
    """Whether the hardware itself multiplies bfloat16 (on a CPU: AMX or AVX-512 BF16 instructions)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return False


def place(device: str = "auto", precision: str = "auto", training: bool = False) -> Placement:
    """Decide where and how a model runs.

    `auto` precision trains in bf16 where the hardware multiplies it fast and in fp32 elsewhere; what is not training
    runs in fp32, because people quote those numbers.

    Raises:
        DeviceError: the device is not here, or can't compute in that precision.
    """
    found = resolve_device(device)
    if precision == "auto":
        precision = "bf16" if training and multiplies_bf16_fast(found) else "fp32"
    if precision == "fp32":
        # TensorFloat-32 would quietly round fp32 convolutions to 10 bits of mantissa.
        torch.backends.cudnn.allow_tf32 = False
    if found.type == "mps" and precision == "fp16" and training:
        raise DeviceError("--precision fp16: training on mps needs bf16 or fp32")
    return Placement(found, precision, channels_last=found.type != "mps")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is one of those by which Python and PyTorch say that memory has run out."""
    # PyTorch has a class of its own for this on accelerators only.
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in said for words in _NO_MEMORY)


@contextmanager
def oom_as_device_error(mend: str) -> Iterator[None]:
    """Turn running out of memory inside the block into a DeviceError that says what to try."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(f"too little memory for this: try {mend}") from error


def make_deterministic() -> None:
    """Have torch refuse, or replace, whatever would not give the same bits twice on this device."""
    if os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in _EXACT_WORKSPACES:  # read when CUDA is first computed with
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = _EXACT_WORKSPACES[0]
    os.environ["TORCHINDUCTOR_DETERMINISTIC"] = "1"  # read when the compiler is imported; else it picks by the clock
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)


def versions() -> dict[str, str]:
    """The versions that results depend on."""
    return {"aecli": __version__, "python": platform.python_version(), "torch": torch.__version__}


def hardware() -> dict[str, Any]:
    """The machine, for config.json."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"system": f"{platform.system()} {platform.machine()}", "threads": torch.get_num_threads(), "gpu": gpu}
