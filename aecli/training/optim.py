"""Optimiser, learning-rate scheduler and EMA of the report's recipe."""

import torch
from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from aecli.models.base import Trainable

PLATEAU_FACTOR = 0.5


def build_optimizer(model: Trainable, lr: float) -> Adam:
    """Adam with the model's betas, fused where the device supports it."""
    device = next(model.parameters()).device
    return Adam(model.parameters(), lr=lr, betas=model.betas, fused=device.type in ("cpu", "cuda"))


def build_scheduler(optimizer: Adam, patience: int) -> ReduceLROnPlateau:
    """Halve the rate when the mean train loss has not fallen for `patience` epochs; step it once an epoch."""
    return ReduceLROnPlateau(optimizer, mode="min", factor=PLATEAU_FACTOR, patience=patience)


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
