"""The report's building blocks and initialisation."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from aecli.models.mish import Mish


class ConvTranspose2d(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` with its gradients computed by the kernels of a convolution.

    The results are equal, since a transposed convolution is the gradient of a convolution, but oneDNN's kernels for the
    gradients of a transposed one are slow. With output padding, groups or dilation PyTorch's own gradients are used.
    """

    def forward(self, values: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        if output_size is not None or any(self.output_padding) or self.groups != 1 or set(self.dilation) != {1}:
            return super().forward(values, output_size)
        weight, bias = self.weight, self.bias
        if not values.is_meta and torch.is_autocast_enabled(values.device.type):
            dtype = torch.get_autocast_dtype(values.device.type)
            values, weight, bias = values.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        output: Tensor = _TransposedConvolution.apply(values, weight, bias, self.stride, self.padding)
        return output


class _TransposedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv_transpose2d(values, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, weight = ctx.saved_tensors
        gradient = gradients[0]
        needs_values, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        values_gradient = functional.conv2d(gradient, weight, None, ctx.stride, ctx.padding) if needs_values else None
        weight_gradient = None
        if needs_weight:
            # The weight's gradient in the convolution of `gradient` whose output has the gradient `values`.
            geometry = (list(ctx.stride), list(ctx.padding), [1, 1], False, [0, 0], 1)
            weight_gradient = torch.ops.aten.convolution_backward(
                values, gradient, weight, None, *geometry, [False, True, False]
            )[1]
        bias_gradient = gradient.sum(dim=(0, 2, 3)) if needs_bias else None
        return values_gradient, weight_gradient, bias_gradient, None, None


def down_block(channels_in: int, channels_out: int) -> list[nn.Module]:
    """Halve both sides: Conv2d k4 s2 p1, BatchNorm2d, Mish."""
    return [nn.Conv2d(channels_in, channels_out, 4, 2, 1), nn.BatchNorm2d(channels_out), Mish()]


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
