"""Arithmetic counted."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from aecli.models.base import Trainable


def forward_flops(model: Trainable, image_size: int) -> float:
    """Operations of one forward pass of an example: those of convolutions and products, multiply and add counted apart.

    The model may lie on the meta device. It is left in the mode, training or not, that it was in.
    """
    was_training = model.training
    device = next(model.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.empty(1, *model.example_shape(image_size), device=device))
    model.train(was_training)
    return float(counter.get_total_flops())
