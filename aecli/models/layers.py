"""The report's building blocks and initialisation."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from aecli.models import matrix_convolution
from aecli.models.matrix_convolution import Geometry
from aecli.models.mish import Mish


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` whose passes with a large weight are matrix products where these are faster.

    That is on a CPU, in float32, while gradients are recorded. Results are equal within rounding.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        if not _is_plain(self) or not _takes_products(values, self.weight):
            return super().forward(values)
        output: Tensor = _Convolution.apply(values, self.weight, self.bias, self.stride, self.padding)
        return output


class ConvTranspose2d(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` with its gradients computed by the kernels of a convolution, or as those of `Conv2d`.

    The results are equal, since a transposed convolution is the gradient of a convolution, but oneDNN's kernels for the
    gradients of a transposed one are slow. With output padding, groups or dilation PyTorch's own gradients are used.
    """

    def forward(self, values: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        if output_size is not None or any(self.output_padding) or not _is_plain(self):
            return super().forward(values, output_size)
        weight, bias = self.weight, self.bias
        if not values.is_meta and torch.is_autocast_enabled(values.device.type):
            dtype = torch.get_autocast_dtype(values.device.type)
            values, weight, bias = values.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        products = _takes_products(values, weight)
        output: Tensor = _TransposedConvolution.apply(values, weight, bias, self.stride, self.padding, products)
        return output


def _is_plain(layer: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    return layer.groups == 1 and set(layer.dilation) == {1} and layer.padding_mode == "zeros"


def _takes_products(values: Tensor, weight: Tensor) -> bool:
    """Whether passes may be matrix products: gradients are recorded, and nobody records the operations themselves."""
    is_recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    is_float32 = values.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return torch.is_grad_enabled() and is_float32 and not is_recorded and matrix_convolution.suits(weight)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.geometry = Geometry(stride, padding)
        return _convolve(values, weight, bias, ctx.geometry, products=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, weight = ctx.saved_tensors
        (gradient,) = gradients
        needs_values, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        of_values = None
        if needs_values and matrix_convolution.suits_grid(*gradient.shape[2:]):
            of_values = matrix_convolution.values_gradient(gradient, weight, ctx.geometry, *values.shape[2:])
        elif needs_values:
            of_values = _convolution_gradient(gradient, values, weight, ctx.geometry, 0)
        of_weight = _weight_gradient(gradient, values, weight, ctx.geometry, products=True) if needs_weight else None
        return of_values, of_weight, gradient.sum(dim=(0, 2, 3)) if needs_bias else None, None, None


class _TransposedConvolution(torch.autograd.Function):
    """The gradient of a convolution: what it makes are that convolution's values."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, products: bool
    ) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.geometry, ctx.products = Geometry(stride, padding), products
        if not products or not matrix_convolution.suits_grid(*values.shape[2:]):
            return functional.conv_transpose2d(values, weight, bias, stride, padding)
        sizes = zip(values.shape[2:], stride, padding, weight.shape[2:], strict=True)
        height, width = ((size - 1) * step - 2 * around + side for size, step, around, side in sizes)
        made = matrix_convolution.values_gradient(values, weight, ctx.geometry, height, width)
        return made if bias is None else made.add_(bias.view(-1, 1, 1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, weight = ctx.saved_tensors
        (gradient,) = gradients
        needs_values, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        of_values = _convolve(gradient, weight, None, ctx.geometry, ctx.products) if needs_values else None
        of_weight = _weight_gradient(values, gradient, weight, ctx.geometry, ctx.products) if needs_weight else None
        return of_values, of_weight, gradient.sum(dim=(0, 2, 3)) if needs_bias else None, None, None, None


def _convolve(values: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, products: bool) -> Tensor:
    if products and matrix_convolution.suits_grid(*geometry.grid(values, weight)):
        return matrix_convolution.convolve(values, weight, bias, geometry)
    return functional.conv2d(values, weight, bias, geometry.stride, geometry.padding)


def _weight_gradient(gradient: Tensor, values: Tensor, weight: Tensor, geometry: Geometry, products: bool) -> Tensor:
    if products:
        return matrix_convolution.weight_gradient(gradient, values, weight, geometry)
    return _convolution_gradient(gradient, values, weight, geometry, 1)


def _convolution_gradient(gradient: Tensor, values: Tensor, weight: Tensor, geometry: Geometry, which: int) -> Tensor:
    """Return PyTorch's gradient of a convolution's values (0) or weight (1)."""
    shape = (list(geometry.stride), list(geometry.padding), [1, 1], False, [0, 0], 1)
    found: Tensor = torch.ops.aten.convolution_backward(
        gradient, values, weight, None, *shape, [which == 0, which == 1, False]
    )[which]
    return found


def down_block(channels_in: int, channels_out: int) -> list[nn.Module]:
    """Halve both sides: Conv2d k4 s2 p1, BatchNorm2d, Mish."""
    return [Conv2d(channels_in, channels_out, 4, 2, 1), nn.BatchNorm2d(channels_out), Mish()]


def up_block(channels_in: int, channels_out: int) -> list[nn.Module]:
    """Double both sides: ConvTranspose2d k4 s2 p1, BatchNorm2d, Mish."""
    return [ConvTranspose2d(channels_in, channels_out, 4, 2, 1), nn.BatchNorm2d(channels_out), Mish()]


def build_encoder(width: int, channels_out: int) -> nn.Sequential:
    """Five blocks, 3 → width → 2·width → 4·width → 8·width → channels_out; sides are divided by 32."""
    channels = [3, width, 2 * width, 4 * width, 8 * width, channels_out]
    return nn.Sequential(*[layer for pair in zip(channels, channels[1:], strict=False) for layer in down_block(*pair)])


def build_decoder(width: int, channels_in: int) -> nn.Sequential:
    """Five blocks, channels_in → 16·width → 8·width → 4·width → 2·width → width, then Conv2d to RGB, Tanh."""
    channels = [channels_in, 16 * width, 8 * width, 4 * width, 2 * width, width]
    blocks = [layer for pair in zip(channels, channels[1:], strict=False) for layer in up_block(*pair)]
    return nn.Sequential(*blocks, nn.Conv2d(width, 3, 3, 1, 1), nn.Tanh())


def initialise(module: nn.Module) -> None:
    """Convolutions: Kaiming normal with nonlinearity 'linear', zero bias; batch norm: ones and zeros."""
    if next(module.parameters()).is_meta:
        return  # PyTorch would take a while to fill what has no memory
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
