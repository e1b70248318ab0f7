"""Floating-point operations of a model."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from aecli.models.base import Prior, Trainable, evaluating

TRAINING_FACTOR = 3  # FLOPs of a training step over those of its forward pass: the backward pass takes twice as many


def forward_flops(model: Trainable, image_size: int) -> float:
    """Count the FLOPs of one example's forward pass: convolutions and matrix products, multiply and add separately.

    The model may be on the meta device; its training mode is restored.
    """
    device = next(model.parameters()).device
    # As matrix products, because the counter doesn't know PyTorch's fused attention on CPUs.
    counter = FlopCounterMode(display=False)
    shape = model.noise_shape() if isinstance(model, Prior) else model.example_shape(image_size)
    with evaluating(model), counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(1, *shape, dtype=model.example_dtype, device=device))
    return float(counter.get_total_flops())
