"""Mish, x·tanh(softplus(x)) (Misra, "Mish: a self regularized non-monotonic activation function", BMVC 2020), sooner.

With e = exp(x) and h = e + e²/2, tanh(log(1 + e)) = h / (h + 1): one exponential, where PyTorch's kernel for CPUs takes
an exponential, a logarithm and a hyperbolic tangent, and so takes as long as the convolutions around it.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_LARGEST_EXPONENT = 40.0  # far beyond where h / (h + 1) is 1 in float32, and h no infinity yet
_CHUNK = 2**16  # elements a thread: four buffers of them stay in a core's cache


class Mish(nn.Module):
    """`nn.Mish`, computed in float32 at least, the dtype kept.

    On a CPU it can't be transformed by `torch.func`; for that, put `nn.Mish` in its place: neither has parameters.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Map a tensor of any shape element by element."""
        if torch.compiler.is_compiling():
            return _in_one_expression(values)
        is_traced = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        if is_traced or values.device.type != "cpu" or values.numel() == 0:
            return functional.mish(values)
        mapped: Tensor = _ChunkedMish.apply(values)
        return mapped


def _in_one_expression(values: Tensor) -> Tensor:
    """For a compiler, which makes one loop of it."""
    wide = values.float()
    exponential = wide.clamp(max=_LARGEST_EXPONENT).exp()
    half = exponential + 0.5 * exponential * exponential
    return (wide * (half / (half + 1))).to(values.dtype)


class _ChunkedMish(torch.autograd.Function):
    """Piece after piece, each going through all operations while it is in the cache."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = _dense(values)
        ctx.save_for_backward(values)
        mapped = torch.empty_like(values)
        for (piece, out), (wide, half, half_and_one, _) in _pieces(values, mapped):
            wide.copy_(piece)
            exponential = torch.clamp(wide, max=_LARGEST_EXPONENT, out=half).exp_()
            torch.addcmul(exponential, exponential, exponential, value=0.5, out=half)
            half.div_(torch.add(half, 1, out=half_and_one))
            out.copy_(wide.mul_(half))
        return mapped

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """d/dx = (x·h' / (h + 1) + h) / (h + 1), h' = e + e²; where the exponent stops, that is 1 but for rounding."""
        (values,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated once more
            bent = functional.softplus(values).tanh()
            slope: Tensor = bent + values * values.sigmoid() * (1 - bent.square())
            return gradient * slope
        gradient = torch.empty_like(values).copy_(gradient) if gradient.stride() != values.stride() else gradient
        towards = torch.empty_like(values)
        for (piece, given, out), (wide, exponential, half, half_and_one) in _pieces(values, gradient, towards):
            wide.copy_(piece)
            torch.clamp(wide, max=_LARGEST_EXPONENT, out=exponential).exp_()
            torch.addcmul(exponential, exponential, exponential, value=0.5, out=half)
            torch.add(half, 1, out=half_and_one)
            slope = torch.addcmul(exponential, exponential, exponential, out=exponential).div_(half_and_one)
            wide.mul_(slope).add_(half).div_(half_and_one)
            out.copy_(wide.mul_(half.copy_(given)))
        return towards


def _dense(values: Tensor) -> Tensor:
    """The same values without gaps or overlaps, in plain or channels-last order."""
    is_dense = values.is_contiguous() or (values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last))
    return values if is_dense else values.contiguous()


def _pieces(*tensors: Tensor) -> Iterator[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """Cut dense tensors of one layout into flat pieces, in the order of memory; beside them four buffers as long."""
    count = tensors[0].numel()
    flat = [tensor.as_strided((count,), (1,)) for tensor in tensors]
    length = min(count, _CHUNK * torch.get_num_threads())
    dtype = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    buffers = torch.empty((4, length), dtype=dtype).unbind()
    for start in range(0, count, length):
        pieces = tuple(each[start : start + length] for each in flat)
        yield pieces, tuple(buffer[: len(pieces[0])] for buffer in buffers)
