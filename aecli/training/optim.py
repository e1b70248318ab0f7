"""Optimiser, schedule and weight average of the report's recipe."""

import torch
from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

BETAS = (0.5, 0.999)
PLATEAU_FACTOR = 0.5
PLATEAU_PATIENCE = 10


def build_optimizer(model: nn.Module, lr: float) -> Adam:
    """Adam with the report's betas, in one fused kernel where the device has it."""
    device = next(model.parameters()).device
    return Adam(model.parameters(), lr=lr, betas=BETAS, fused=device.type in ("cpu", "cuda"))


def build_schedule(optimizer: Adam) -> ReduceLROnPlateau:
    """Halve the rate when the mean train loss has not fallen for 10 epochs; step it once an epoch."""
    return ReduceLROnPlateau(optimizer, mode="min", factor=PLATEAU_FACTOR, patience=PLATEAU_PATIENCE)


def build_average(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """Exponential moving average of weights and batch statistics, or None without a decay."""
    if decay is None:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)  # type: ignore[no-untyped-call]


def matching_layout(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return `value` on the device and in the memory layout of `like`: fused kernels take that for granted."""
    if value.dim() == 0:  # a fused optimiser's count of steps is on the device; MPS has no fused one
        return value if like.device.type == "mps" else value.to(like.device)
    return torch.empty_like(like, dtype=value.dtype).copy_(value)
