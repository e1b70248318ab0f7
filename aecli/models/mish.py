"""A fast Mish, x·tanh(softplus(x)) (Misra, "Mish: a self regularized non-monotonic activation function", BMVC 2020).

With e = exp(x) and h = e + e²/2, tanh(log(1 + e)) = h / (h + 1): one exponential, where PyTorch's CPU kernel computes
an exponential, a logarithm and a hyperbolic tangent, and takes as long as the convolutions around it.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_LARGEST_EXPONENT = 40.0  # h / (h + 1) is 1 in float32 long before it, and h doesn't overflow
_CHUNK = 2**16  # elements per thread: four such buffers fit in a core's cache


class Mish(nn.Module):
    """`nn.Mish`, computed in float32 or float64; the output has the input's dtype.

    On a CPU `torch.func` can't transform it; replace it by `nn.Mish` for that. Neither has parameters.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Apply Mish elementwise to a tensor of any shape."""
        if torch.compiler.is_compiling():
            return _compilable(values)
        is_traced = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        if is_traced or values.device.type != "cpu" or values.numel() == 0:
            return functional.mish(values)
        mapped: Tensor = _ChunkedMish.apply(values)
        return mapped


def _compilable(values: Tensor) -> Tensor:
    """Mish as an expression that a compiler fuses into one loop."""
    wide = values.float()
    exponential = wide.clamp(max=_LARGEST_EXPONENT).exp()
    half = exponential + 0.5 * exponential * exponential
    return (wide * (half / (half + 1))).to(values.dtype)


class _ChunkedMish(torch.autograd.Function):
    """Mish chunk by chunk, with all operations on a chunk while it is in the cache."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = _dense(values)
        ctx.save_for_backward(values)
        mapped = torch.empty_like(values)
        for (chunk, out), (wide, half, half_and_one, _) in _chunks(values, mapped):
            wide.copy_(chunk)
            exponential = torch.clamp(wide, max=_LARGEST_EXPONENT, out=half).exp_()
            torch.addcmul(exponential, exponential, exponential, value=0.5, out=half)
            half.div_(torch.add(half, 1, out=half_and_one))
            out.copy_(wide.mul_(half))
        return mapped

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """d/dx = (x·h' / (h + 1) + h) / (h + 1), h' = e + e²; where the exponent is clamped, it rounds to 1."""
        (values,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a second derivative
            tanh = functional.softplus(values).tanh()
            slope: Tensor = tanh + values * values.sigmoid() * (1 - tanh.square())
            return gradient * slope
        gradient = torch.empty_like(values).copy_(gradient) if gradient.stride() != values.stride() else gradient
        result = torch.empty_like(values)
        for (chunk, given, out), (wide, exponential, half, half_and_one) in _chunks(values, gradient, result):
            wide.copy_(chunk)
            torch.clamp(wide, max=_LARGEST_EXPONENT, out=exponential).exp_()
            torch.addcmul(exponential, exponential, exponential, value=0.5, out=half)
            torch.add(half, 1, out=half_and_one)
            slope = torch.addcmul(exponential, exponential, exponential, out=exponential).div_(half_and_one)
            wide.mul_(slope).add_(half).div_(half_and_one)
            out.copy_(wide.mul_(half.copy_(given)))
        return result


def _dense(values: Tensor) -> Tensor:
    """Return the values without gaps or overlaps, contiguous or channels-last."""
    is_dense = values.is_contiguous() or (values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last))
    return values if is_dense else values.contiguous()


def _chunks(*tensors: Tensor) -> Iterator[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """Yield flat chunks of dense tensors of one layout, in memory order, with four buffers of the same length."""
    count = tensors[0].numel()
    flat = [tensor.as_strided((count,), (1,)) for tensor in tensors]
    length = min(count, _CHUNK * torch.get_num_threads())
    dtype = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    buffers = torch.empty((4, length), dtype=dtype).unbind()
    for start in range(0, count, length):
        chunks = tuple(each[start : start + length] for each in flat)
        yield chunks, tuple(buffer[: len(chunks[0])] for buffer in buffers)
