"""The weights that a new run begins from, instead of random ones."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from aecli.configs.checks import model_flag
from aecli.errors import CheckpointError, count_of, message_of
from aecli.models import registry
from aecli.runs import checkpoints
from aecli.training.plan import Plan

_NAMED = 5  # tensors in a notice


@dataclasses.dataclass(frozen=True)
class StartingWeights:
    """Tensors of the model's `state_dict`, and a line that says what is taken, what left and what begins anew."""

    tensors: Mapping[str, Tensor]
    notice: str


def load_starting_weights(plan: Plan) -> StartingWeights | None:
    """Read the weights that `--init` names for a new run; None without it.

    Raises:
        CheckpointError: they are gone, damaged, or of a model with other options, the first of which is named.
    """
    init, model = plan.init, plan.config.model
    if init is None:
        return None
    if init.path is None:
        raise CheckpointError(
            f"--init {init.given}: no such weights any more\n"
            "hint: a run that began from them continues with the options that it began with"
        )
    if wrong := _misfit(model.name, plan.model_options, init.document["options"]):
        option, now, theirs = wrong
        flag = model_flag(option)
        raise CheckpointError(
            f"{flag} {now}: the weights {init.path}, which --init names, have {'none' if theirs is None else theirs}\n"
            f"hint: leave {flag} out to take theirs"
        )
    built = registry.build_on_meta(model.name, plan.model_options)
    tensors, left = checkpoints.load_weights(init.path, built)
    parts = [f"beginning from {init.path}: {count_of(len(tensors), 'tensor')} taken"]
    for names, what in ((left, "left"), ([key for key in built.state_dict() if key not in tensors], "new")):
        if names:
            parts.append(f"{len(names):,} {what} ({_names(names)})")
    unnamed = {key: value for key, value in plan.options["options"].items() if key not in model.options}
    settings = ", ".join(f"{key} {'none' if value is None else message_of(value)}" for key, value in unnamed.items())
    return StartingWeights(tensors, ", ".join(parts) + (f"; with their {settings}" if settings else ""))


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(message_of, names[:_NAMED])) + (", …" if len(names) > _NAMED else "")


def _misfit(name: str, options: Any, recorded: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first option by which the model has other shapes than the weights: its name, value, and theirs."""
    known = {field.name for field in dataclasses.fields(options)}
    theirs = registry.resolve_options(name, {key: value for key, value in recorded.items() if key in known})
    shapes = _shapes(name, theirs)
    for option in sorted(known):
        now, then = getattr(options, option), getattr(theirs, option)
        if now != then and _shapes(name, dataclasses.replace(theirs, **{option: now})) != shapes:
            return option, now, then
    return None


def _shapes(name: str, options: Any) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in registry.build_on_meta(name, options).state_dict().items()}
