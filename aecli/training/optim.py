"""Optimizers, by name, and the moving average of weights."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Muon, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from aecli.configs.train import OptimizationConfig
from aecli.errors import ConfigError
from aecli.models.base import Trainable

ADAMW_BETAS = (0.9, 0.99)
CRITIC_BETAS = (0.5, 0.9)


class NotCompiled:
    """Mixed into an optimizer: its methods without PyTorch's decorators, which import its compiler to step out of it.

    That import takes two seconds of every process that trains.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own."""
        inspect.unwrap(Optimizer.add_param_group)(self, param_group)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update the parameters from their gradients."""
        inspect.unwrap(super().step)(self, closure)  # type: ignore[misc]


class _Adam(NotCompiled, Adam): ...  # type: ignore[misc]


class _AdamW(NotCompiled, AdamW): ...  # type: ignore[misc]


class _Muon(NotCompiled, Muon): ...  # type: ignore[misc]


# What each kind of optimizer keeps for a parameter; "step" is a scalar, the others are shaped like the parameter.
QUANTITIES: dict[type[Optimizer], tuple[str, ...]] = {
    _Adam: ("step", "exp_avg", "exp_avg_sq"),
    _AdamW: ("step", "exp_avg", "exp_avg_sq"),
    _Muon: ("momentum_buffer",),
}


def build_optimizers(
    module: nn.Module, config: OptimizationConfig, betas: tuple[float, float]
) -> tuple[list[Optimizer], dict[nn.Parameter, nn.Parameter]]:
    """Return the optimizers of the trainable parameters of `module`, and the matrices that stand for kernels in Muon.

    `adam` has the model's `betas`. Weight decay is decoupled under `adamw` and `muon`, and spares vectors (biases, the
    scales of norms) and codebooks. `muon` takes kernels as matrices (out, in·k·k), but the first and the last of them,
    which map from and to pixels; AdamW takes the rest.
    """
    parameters = [each for each in module.parameters() if each.requires_grad]
    if not parameters:
        return [], {}
    lr, decay = config.lr, config.weight_decay
    fused = bool(parameters) and parameters[0].device.type in ("cpu", "cuda")
    if config.optimizer == "adam":
        return [_Adam(parameters, lr=lr, betas=betas, weight_decay=decay, fused=fused)], {}
    codebooks = {id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Embedding)}
    kernels = [each for each in parameters if each.ndim >= 2 and id(each) not in codebooks]
    decayed = {id(kernel) for kernel in kernels}
    chosen = kernels[1:-1] if config.optimizer == "muon" else []
    matrices = {kernel: as_matrix(kernel) for kernel in chosen}
    taken = {id(kernel) for kernel in chosen}
    rest = [each for each in parameters if id(each) not in taken]
    groups = [
        {"params": [each for each in rest if id(each) in decayed], "weight_decay": decay},
        {"params": [each for each in rest if id(each) not in decayed], "weight_decay": 0.0},
    ]
    optimizers: list[Optimizer] = [_AdamW(groups, lr=lr, betas=ADAMW_BETAS, fused=fused)]
    if matrices:
        scaled = "match_rms_adamw"  # the update's size is AdamW's, so that one rate suits both
        optimizers.append(_Muon(list(matrices.values()), lr=lr, weight_decay=decay, adjust_lr_fn=scaled))
    return optimizers, matrices


def build_critic_optimizer(critic: nn.Module, lr: float) -> Optimizer:
    """Adam with the usual betas of discriminators."""
    fused = next(critic.parameters()).device.type in ("cpu", "cuda")
    return _Adam(critic.parameters(), lr=lr, betas=CRITIC_BETAS, fused=fused)


def as_matrix(kernel: Tensor) -> nn.Parameter:
    """Return a view (out, in·k·k) of a kernel, in whatever order of the columns its memory has.

    Muon's update does not depend on that order. Raises ValueError where the memory allows no such view.
    """
    values = kernel.detach()
    if values.ndim == 4 and not values.is_contiguous():  # channels_last
        values = values.permute(0, 2, 3, 1)
    return nn.Parameter(values.view(len(values), -1))


def columns_last(kept: Tensor, kernel: Tensor) -> Tensor:
    """Return what an optimizer keeps for a kernel, a matrix with its columns in the order (h, w, in).

    Checkpoints have them so, and a channels_last kernel; the memory format of a device may be another. What is no such
    matrix is returned as it is.
    """
    if not _has_other_order(kept, kernel):
        return kept
    return kept.view(kernel.shape).permute(0, 2, 3, 1).reshape(kept.shape)


def columns_as_in(kernel: Tensor, kept: Tensor) -> Tensor:
    """Return what `columns_last` was made of, for a kernel in its own memory format."""
    if not _has_other_order(kept, kernel):
        return kept
    count, channels, height, width = kernel.shape
    return kept.view(count, height, width, channels).permute(0, 3, 1, 2).reshape(kept.shape)


def _has_other_order(kept: Tensor, kernel: Tensor) -> bool:
    return kept.ndim == 2 and kernel.ndim == 4 and kernel.is_contiguous()


def matrix_gradients(matrices: dict[nn.Parameter, nn.Parameter]) -> None:
    """Give each matrix its kernel's gradient, in the order of its own columns."""
    for kernel, matrix in matrices.items():
        gradient = kernel.grad
        if gradient is None:
            matrix.grad = None
            continue
        if kernel.ndim == 4 and not kernel.is_contiguous():
            gradient = gradient.permute(0, 2, 3, 1)
        matrix.grad = gradient.reshape(matrix.shape)


def freeze_encoder(model: Trainable) -> None:
    """Train only the decoder of an autoencoder: the rest keeps its weights, and its batch statistics.

    Raises:
        ConfigError: the model has no decoder apart.
    """
    modules = getattr(model, "decoder_modules", ())
    if not modules or any(not hasattr(model, name) for name in modules):
        raise ConfigError(f"--train decoder: {type(model).__name__} has no decoder that can be trained alone")
    for name, child in model.named_children():
        if name not in modules:
            child.requires_grad_(False).eval()


def build_ema(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """Exponential moving average (EMA) of weights and batch statistics, or None without a decay."""
    if decay is None:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)  # type: ignore[no-untyped-call]


def matching_layout(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return `value` on the device and in the memory layout of `like`, as fused kernels assume without a check."""
    if value.dim() == 0:  # a fused optimiser counts steps on the device; MPS has no fused one
        return value if like.device.type == "mps" else value.to(like.device)
    return torch.empty_like(like, dtype=value.dtype).copy_(value)
