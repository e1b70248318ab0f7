"""Name → model class: built-ins, plug-ins and `package.module:Class`.

A model is imported, and torch with it, only when it is loaded, so that names are listed and completed quickly.
"""

import dataclasses
import difflib
import importlib
import os
import sys
import typing
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

from aecli.configs.checks import MODEL_FLAGS
from aecli.configs.options import alternatives
from aecli.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from aecli.models.base import Trainable

ENTRY_POINT_GROUP = "aecli.models"
_BUILT_IN = {
    "ae": "aecli.models.ae:AE",
    "vae": "aecli.models.vae:VAE",
    "pca": "aecli.models.pca:PCA",
    "resnet": "aecli.models.resnet:ResNet",
    "kl": "aecli.models.kl:KL",
    "vq": "aecli.models.vq:VQ",
    "prior": "aecli.models.flow:Flow",
}
PRIORS = ("prior",)  # names of built-ins that are not autoencoders
PRIOR_OF_CODES = "autoregressive"  # what `prior` is for an autoencoder with codes: a name in files, not for users
_IN_FILES = {**_BUILT_IN, PRIOR_OF_CODES: "aecli.models.autoregressive:Autoregressive"}


@cache  # it reads a file of every installed package
def entry_points(group: str) -> tuple[metadata.EntryPoint, ...]:
    """Return the entry points of all installed packages in that group."""
    return tuple(metadata.entry_points(group=group))


def targets() -> dict[str, str]:
    """Return every registered name and its `package.module:Class`: built-ins, then plug-ins, sorted."""
    plugins = {point.name: point.value for point in sorted(entry_points(group=ENTRY_POINT_GROUP))}
    return {**_BUILT_IN, **{name: target for name, target in plugins.items() if name not in _BUILT_IN}}


def names() -> list[str]:
    """Return every registered name."""
    return list(targets())


def is_built_in(model: type) -> bool:
    """Whether the class is one of aecli's own."""
    return f"{model.__module__}:{model.__qualname__}" in _IN_FILES.values()


def is_model_name(text: str) -> bool:
    """Whether `text` names a model: a registered name or a `package.module:Class`."""
    return _is_target(text) or text in targets()


def _is_target(text: str) -> bool:
    module, _, attribute = text.partition(":")
    return attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))


def suggestion(name: str) -> str:
    """Return a hint for an unknown `name`: the registered names, and the most similar one."""
    close = difflib.get_close_matches(name.lower(), names(), n=1)
    registered = f"registered are {', '.join(names())}"
    return f"did you mean {close[0]}? {registered}" if close else f"{registered}; or name a package.module:Class"


def run_name(name: str) -> str:
    """Return the name for a model's run folder: its name, or the class of `package.module:Class` in lower case."""
    return name.partition(":")[2].lower() or name


def load(name: str) -> type["Trainable"]:
    """Import and return the class of a registered name or `package.module:Class`.

    Raises:
        ModelError: an unknown name, a module that can't be imported, or a class that isn't an Autoencoder or Prior.
    """
    from aecli.models.base import Trainable

    target = name if ":" in name else {**targets(), **_IN_FILES}.get(name)
    if target is None or not _is_target(target):
        raise ModelError(f"unknown model {name!r}\nhint: {suggestion(name)}")
    module_name, _, attribute = target.partition(":")
    # As with `python -m`, a class may be in the working folder. For registered names that folder stays out of sys.path,
    # because PyTorch tries to import optional packages, and might find other modules of those names there.
    if ":" in name and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module_name), attribute, None)
    except ImportError as error:
        raise ModelError(f"model {name!r}: {module_name} can't be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Trainable)):
        raise ModelError(
            f"model {name!r}: {attribute} in {module_name} is not a subclass of aecli.models.base.Autoencoder or Prior"
        )
    if not dataclasses.is_dataclass(getattr(found, "Options", None)):
        raise ModelError(f"model {name!r}: its `Options` must be a dataclass")
    return found


def resolve_options(name: str, given: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> Any:
    """Return the model's options from `given` values, which may be text as on the command line.

    `defaults` are used for options that are not given, if the model has them.

    Raises:
        ConfigError: an option that the model doesn't have, or a value of another type or out of range.
    """
    options_class = load(name).Options
    hints = typing.get_type_hints(options_class)
    fields = {field.name: field for field in dataclasses.fields(options_class)}
    unknown = sorted(set(given) - set(fields))
    if unknown:
        existing = ", ".join(f"{key} ({type_name(hints[key])})" for key in fields) or "none"
        flag = f"{MODEL_FLAGS[unknown[0]]} or " if unknown[0] in MODEL_FLAGS else ""
        raise ConfigError(f"{flag}--option {unknown[0]}: model {name!r} has no such option\nhint: it has {existing}")
    merged = {key: value for key, value in (defaults or {}).items() if key in fields} | dict(given)
    for key, field in fields.items():
        if key not in merged and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"--option {key}=…: model {name!r} needs it ({type_name(hints[key])})")
    return options_class(**{key: _convert(key, value, hints[key]) for key, value in merged.items()})


def build(name: str, options: Any) -> "Trainable":
    """Build a model with newly initialised weights."""
    return load(name)(options)


def build_on_meta(name: str, options: Any) -> "Trainable":
    """Build a model without memory for its weights: for names, shapes and counts."""
    import torch

    with torch.device("meta"):
        return build(name, options)


def type_name(hint: Any) -> str:
    """Return a type's name for messages, without None."""
    if typing.get_origin(hint) is tuple:
        return f"{type_name(typing.get_args(hint)[0])}s with commas between"
    return " or ".join(getattr(kind, "__name__", str(kind)) for kind in alternatives(hint))


def _convert(key: str, value: Any, hint: Any) -> Any:
    """Convert `value` to the option's type: text is parsed, and an int accepted as a float; 8,5,5 is a tuple."""
    if typing.get_origin(hint) is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            raise ConfigError(f"--option {key}={value}: expected {type_name(hint)}")
        return tuple(_convert(key, part, typing.get_args(hint)[0]) for part in parts)
    kinds = alternatives(hint)
    is_optional = kinds != (hint,)
    if value is None and is_optional or isinstance(value, str) and value.lower() == "none" and is_optional:
        return None
    for kind in kinds:
        if type(value) is kind:
            return value
        if kind is float and type(value) is int:
            return float(value)
        if isinstance(value, str) and kind is bool and value.lower() in _TRUTH:
            return _TRUTH[value.lower()]
        if isinstance(value, str) and kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    raise ConfigError(f"--option {key}={value}: expected {type_name(hint)}")


_TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
