"""An option, once: its default, help, panel, choices and bounds stand on a dataclass field.

The command's signature, its help and completion, the checks of TOML files and of Python values read the same field.
Only the standard library: every `--help` imports this.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from aecli.errors import ConfigError

DATA, MODEL, METRICS_PANEL, RECIPE, RUN, MACHINE, OUTPUT = (
    "Data", "Model", "Metrics", "Recipe", "Run", "Machine", "Output",
)  # fmt: skip


@dataclass(frozen=True)
class Option:
    """What the command line knows of a field.

    `name` is the option's where it isn't the field's, `short` a one-letter flag, `hidden_flag` an older spelling that
    still works. Numbers lie from `least` to `most`, above `above` and below `below`. `completes` names what the shell
    offers: source, prediction, model, registered or config. A `separated` tuple is one text with commas.
    """

    help: str
    panel: str
    name: str = ""
    flag: str = ""
    hidden_flag: str = ""
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    completes: str | None = None
    shown_default: str | None = None
    positional: bool = False
    separated: bool = False
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    example: str | None = None
    pattern: str | None = None  # that a text matches, and the words for it
    expected: str | None = None


def option(default: Any, help: str, panel: str, **details: Any) -> Any:
    """Return a dataclass field with that default (`...`: required) that is an option of the command line."""
    known = {"metadata": {"option": Option(help, panel, **details)}}
    return field(**known) if default is ... else field(default=default, **known)  # type: ignore[call-overload]


@dataclass(frozen=True)
class OptionField:
    """A field of a config class that is an option, with its type."""

    field: Field[Any]
    option: Option
    hint: Any

    @property
    def name(self) -> str:
        """The option's name in Python and TOML."""
        return self.option.name or self.field.name

    @property
    def flag(self) -> str:
        """The option's name on the command line."""
        return self.option.flag or "--" + self.name.replace("_", "-")

    @property
    def default(self) -> Any:
        """Its default; `...` where it is required."""
        return ... if self.field.default is MISSING else self.field.default

    @property
    def kinds(self) -> tuple[type, ...]:
        """The types that a value may have, None's aside."""
        return tuple(kind for kind in get_args(self.hint) or (self.hint,) if kind is not NoneType)

    @property
    def is_tuple(self) -> bool:
        """Whether it takes several values."""
        return get_origin(self.hint) is tuple


def option_fields(config: type) -> tuple[OptionField, ...]:
    """Return the options of a config class, in the order in which its help lists them."""
    hints = get_type_hints(config)
    return tuple(
        OptionField(each, each.metadata["option"], hints[each.name])
        for each in fields(config)
        if "option" in each.metadata
    )


class CheckedOptions:
    """Base of frozen config dataclasses: checks every option's type, choices and bounds when one is made."""

    def __post_init__(self) -> None:
        """Check; texts that name paths become Paths.

        Raises:
            ConfigError: the message names the flag and what is expected.
        """
        for each in option_fields(type(self)):
            value = getattr(self, each.field.name)
            checked = check_value(each, value)
            if checked is not value:
                object.__setattr__(self, each.field.name, checked)


def check_value(each: OptionField, value: Any) -> Any:
    """Return `value` as the field holds it.

    Raises:
        ConfigError: it has another type, or lies outside the option's choices or bounds.
    """
    if value is None and NoneType in get_args(each.hint):
        return None
    if each.is_tuple:
        return _checked_tuple(each, value)
    kinds = each.kinds
    if isinstance(value, str) and "\0" in value:  # which no path can hold
        raise _unexpected(each, repr(value), "text without a NUL")
    if Path in kinds and isinstance(value, str | Path) and str(value):
        return Path(value)
    if type(value) is int and float in kinds:
        value = float(value)
    if str in kinds and isinstance(value, Path):
        value = str(value)
    if type(value) not in kinds:
        raise _unexpected(each, repr(value))
    if not _is_within(each.option, value):
        raise _unexpected(each, value if value != "" else "''")
    return value


def _checked_tuple(each: OptionField, value: Any) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, list | tuple):
        raise _unexpected(each, repr(value), "a list")
    kind = get_args(each.hint)[0]
    for part in value:
        if not isinstance(part, str | kind) or (each.option.choices and part not in each.option.choices):
            raise _unexpected(each, part, f"some of {', '.join(each.option.choices)}" if each.option.choices else None)
    return tuple(map(kind, value))


def _is_within(option: Option, value: Any) -> bool:
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (
            (option.least is None or value >= option.least)
            and (option.most is None or value <= option.most)
            and (option.above is None or value > option.above)
            and (option.below is None or value < option.below)
        )
    if option.pattern is not None and not re.fullmatch(option.pattern, value):
        return False
    return value in option.choices if option.choices else value != ""


def _unexpected(each: OptionField, value: object, expected: str | None = None) -> ConfigError:
    return ConfigError(f"{each.flag} {value}: expected {expected or ' '.join(_expectation(each))}")


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def _expectation(each: OptionField) -> Iterator[str]:
    """Yield the words of what an option takes: `a whole number from 1 to 1024`."""
    option = each.option
    if option.expected is not None:
        yield option.expected
        return
    if option.choices:
        yield f"one of {', '.join(option.choices)}"
        return
    yield " or ".join(_KINDS[kind] for kind in each.kinds)
    low, high = option.least, option.most
    if option.above is not None and option.below is not None:
        yield f"between {option.above:g} and {option.below:g}"
    elif option.above is not None:
        yield f"above {option.above:g}"
    elif low is not None and option.below is not None:
        yield f"from {low:g} up to, not including, {option.below:g}"
    elif low is not None and high is not None:
        yield f"from {low} to {high}"
    elif low is not None:
        yield f"of at least {low:g}"
    if option.example is not None:
        yield f"such as {option.example}"
