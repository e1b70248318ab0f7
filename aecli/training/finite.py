"""The first loss or gradient that is no finite number, found without making the device wait."""

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from aecli.training.state import TrainState


class FiniteWatch:
    """Looks at every step and notes, on the device, the first whose loss or gradient is no finite number."""

    def __init__(self, state: TrainState) -> None:
        """Watch the steps of `state` from here on."""
        self._state = state
        self._first = torch.zeros(2, dtype=torch.int64, device=state.sums.device)

    def look(self, loss: Tensor) -> None:
        """Look at a step's loss and at the gradients that it left, before they are used.

        Under fp16's loss scaling single steps overflow, and are left out: there, only the loss is looked at.
        """
        values = [loss.detach().float()]
        if not self._state.scaler.is_enabled():
            gradients = [each.grad for each in self._state.model.parameters() if each.grad is not None]
            values.append(get_total_norm(gradients).to(loss.device))
        is_first = ~torch.isfinite(torch.stack(values)) & (self._first[: len(values)] == 0)
        self._first[: len(values)].masked_fill_(is_first, self._state.clock.step + 1)

    def failure(self) -> tuple[str, int] | None:
        """What was the first to be no finite number, and in which step (from 1); waits for the device."""
        loss_step, gradient_step = self._first.tolist()
        if loss_step and (not gradient_step or loss_step <= gradient_step):
            return "loss", loss_step
        if gradient_step:
            return "gradient", gradient_step
        if self._state.scaler.is_enabled() and self._state.scaler.get_scale() < 1:  # it begins at 65536
            return "gradient (in fp16, at every scale)", self._state.clock.step
        return None
