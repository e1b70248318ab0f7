"""One trained network with its optimizers, loss scaling and clipping: a step of it, and all that is saved of it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from aecli.training.optim import QUANTITIES, columns_as_in, columns_last, matching_layout, matrix_gradients


class Learner:
    """Trains `module`; its tensors and its document stand in a checkpoint under its own prefix."""

    def __init__(
        self,
        module: nn.Module,
        optimizers: Sequence[Optimizer],
        scaler: GradScaler,
        matrices: dict[nn.Parameter, nn.Parameter] | None = None,
        clip_norm: float | None = None,
        prefix: str = "",
    ) -> None:
        """`matrices` are views of kernels that one of the optimizers updates in their place."""
        self.module, self.optimizers, self.scaler = module, list(optimizers), scaler
        self.clip_norm, self.prefix = clip_norm, prefix
        self._matrices = matrices or {}

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [each for each in self.module.parameters() if each.requires_grad]

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of a loss; a network fitted in closed form has none."""
        if not self.optimizers:
            return
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(self, lr: float) -> Tensor | None:
        """Update the weights from the accumulated gradients, and clear these; return the gradients' norm.

        A network fitted in closed form has nothing to update, and no norm. Under fp16's loss scaling the norm is None,
        unless gradients are clipped: single steps overflow and are skipped.
        """
        if not self.optimizers:
            return None
        matrix_gradients(self._matrices)
        optimized, norm = [self._matrices.get(each, each) for each in self.parameters], None
        if self.clip_norm is not None:
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
        if self.clip_norm is not None or not self.scaler.is_enabled():
            norm = get_total_norm([each.grad for each in optimized if each.grad is not None])
        if self.clip_norm is not None and norm is not None:
            clip_grads_with_norm_(optimized, self.clip_norm, norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            self.scaler.step(optimizer)
        self.scaler.update()
        self.zero_grad()
        return None if self.scaler.is_enabled() else norm

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for each in (*self.parameters, *self._matrices.values()):
            each.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """Return the network's and the optimizers' tensors, by the names that a checkpoint gives them."""
        found = {f"{self.prefix}model.{key}": value for key, value in self.module.state_dict().items()}
        for name, optimizer, parameter, held in self._optimized():
            for quantity, value in optimizer.state.get(held, {}).items():
                if isinstance(value, Tensor):
                    found[f"{self.prefix}optimizer.{quantity}.{name}"] = columns_last(value, parameter)
        return found

    def optional_tensors(self) -> list[dict[str, Tensor]]:
        """Return what a checkpoint may hold beside `tensors()`, as groups of which all or none is there.

        A parameter that has had no gradient yet has no moments.
        """
        groups = []
        for name, optimizer, _, held in self._optimized():
            scalar = torch.zeros((), dtype=torch.float32)
            groups.append({
                f"{self.prefix}optimizer.{quantity}.{name}": scalar if quantity == "step" else held
                for quantity in QUANTITIES[type(optimizer)]
            })  # fmt: skip
        return groups

    def restore(self, tensors: dict[str, Tensor], scaler: dict[str, Any]) -> None:
        """Become what `tensors` and a scaler's document were taken of; they have been checked."""
        prefix = f"{self.prefix}model."
        self.module.load_state_dict({
            key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
        })  # fmt: skip
        for name, optimizer, parameter, held in self._optimized():
            for quantity in QUANTITIES[type(optimizer)]:
                saved = tensors.get(f"{self.prefix}optimizer.{quantity}.{name}")
                if saved is not None:
                    optimizer.state[held][quantity] = matching_layout(columns_as_in(parameter, saved), held)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(scaler)

    def optimizer_bytes(self) -> int:
        """Return the bytes of what the optimizers keep so far, but for their counts of steps."""
        values = [value for each in self.optimizers for kept in each.state.values() for value in kept.values()]
        return sum(
            value.numel() * value.element_size() for value in values if isinstance(value, Tensor) and value.dim()
        )

    def _optimized(self) -> list[tuple[str, Optimizer, nn.Parameter, nn.Parameter]]:
        """Return each trained parameter's name, its optimizer, the parameter, and what stands for it there."""
        owners = {id(each): one for one in self.optimizers for group in one.param_groups for each in group["params"]}
        found = []
        for name, parameter in self.module.named_parameters():
            held = self._matrices.get(parameter, parameter)
            if id(held) in owners:
                found.append((name, owners[id(held)], parameter, held))
        return found
