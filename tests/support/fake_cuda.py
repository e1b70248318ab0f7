"""A CUDA device that is only pretended: tensors have shapes, types and devices, and no values.

A tensor on another device than those that it meets is caught without a GPU. What PyTorch can't pretend is left out:
backward passes, streams and pinned memory.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = torch.device("cuda", 0)


class _Values(TorchDispatchMode):
    """What `bool(tensor)`, `.item()` and `.tolist()` say where there is no value: True or 1."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if func is aten.is_nonzero.default:
            return True
        if func in (aten.item.default, aten._local_scalar_dense.default):
            return 1.0 if args[0].is_floating_point() else 1
        return func(*args, **(kwargs or {}))


def _numpy(tensor: Tensor) -> np.ndarray:
    """Zeros for a tensor on the CPU; as with a real one, CUDA's has to be copied there first."""
    if tensor.device.type != "cpu":
        raise TypeError("can't convert a CUDA tensor to numpy: use Tensor.cpu() first")
    return np.zeros(tensor.shape, str(tensor.dtype).removeprefix("torch."))


def _apply(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """What `Module.to` calls: PyTorch can't exchange the parameters of a module that was built on no memory."""
    for owner in module.modules() if recurse else [module]:
        for key, value in owner._parameters.items():
            if value is not None:
                owner._parameters[key] = nn.Parameter(function(value.detach()), value.requires_grad)
        for key, value in owner._buffers.items():
            owner._buffers[key] = value if value is None else function(value)
    return module


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Pretend a CUDA device inside the block; modules that move there are of no use after it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "numpy", _numpy)
        patch.setattr(nn.Module, "_apply", _apply)
        # Without a CUDA device `autocast` would warn, and do nothing.
        patch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
        patch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: True)
        with FakeTensorMode(allow_non_fake_inputs=True), _Values():
            yield
