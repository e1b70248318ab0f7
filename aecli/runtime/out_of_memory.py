"""Out of memory, told by Python, NumPy or PyTorch in many ways, as one error."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from aecli.errors import DeviceError

# Messages of PyTorch's CPU allocator, of C++, and of oneDNN, which has only this one for kernels that it can't create.
_CPU_OUT_OF_MEMORY = ("allocate memory", "std::bad_alloc", "could not create a primitive")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python or PyTorch raised `error` for lack of memory."""
    # On a CPU PyTorch raises a bare RuntimeError.
    message, torch = str(error), sys.modules.get("torch")
    is_torchs = torch is not None and isinstance(error, torch.OutOfMemoryError)
    return is_torchs or isinstance(error, MemoryError) or any(text in message for text in _CPU_OUT_OF_MEMORY)


@contextmanager
def oom_as_device_error(hint: str) -> Iterator[None]:
    """Convert out-of-memory errors inside the block to a DeviceError with `hint`: options that need less memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(f"too little memory\nhint: try {hint}") from error
