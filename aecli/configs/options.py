"""An option is a dataclass field: its metadata holds help, panel, choices and bounds.

Signature, help and completion of a command, and the checks of TOML files and of Python values all read the same field.
Only the standard library: every `--help` imports this.
"""

import math
import os
import re
from dataclasses import MISSING, Field, dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from aecli.configs.checks import model_flag
from aecli.configs.given_images import GivenImages, given_images, is_path, named_images
from aecli.errors import ConfigError, message_of

_VAST = 2**1000  # no float is much larger

DATA, MODEL, METRICS_PANEL, RECIPE, RUN, MACHINE, OUTPUT = (
    "Data", "Model", "Metrics", "Recipe", "Run", "Machine", "Output",
)  # fmt: skip
FREELY = "freely"


@dataclass(frozen=True)
class Option:
    """An option of the command line.

    `name` and `flag` are set where they differ from the field's name; `hidden_flag` is an older spelling that still
    works. Numbers are at least `least`, at most `most`, above `above` and below `below`; text matches `pattern`, which
    `expected` describes. `completes` says what the shell completes: source, prediction, model, registered (names),
    config or device. A `separated` tuple is one text with commas. `may_change` says how the option may differ when a
    run is resumed, `FREELY` or in other words; empty: not at all.
    """

    help: str
    panel: str
    name: str = ""
    flag: str = ""
    short_flag: str = ""
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
    pattern: str | None = None
    expected: str | None = None
    may_change: str = ""
    of_recipes: bool = False


def option(default: Any, help: str, panel: str, **details: Any) -> Any:
    """Return a dataclass field that is an option; a `default` of `...` makes it required."""
    return field(default=MISSING if default is ... else default, metadata={"option": Option(help, panel, **details)})


@dataclass(frozen=True)
class OptionField:
    """A field of a config class that is an option, with its type."""

    field: Field[Any]
    option: Option
    hint: Any
    is_of_model: bool = False

    @property
    def name(self) -> str:
        """The option's name in Python and TOML."""
        return self.option.name or self.field.name

    @property
    def flag(self) -> str:
        """The option's name on the command line."""
        if self.is_of_model:
            return model_flag(self.name)
        return self.option.flag or "--" + self.name.replace("_", "-")

    @property
    def off_flag(self) -> str:
        """The name, on the command line, of what switches it off again."""
        return "--no-" + self.flag.removeprefix("--")

    @property
    def default(self) -> Any:
        """Its default; `...` if it is required."""
        return ... if self.field.default is MISSING else self.field.default

    @property
    def kinds(self) -> tuple[type, ...]:
        """The types of its values, without None's."""
        return alternatives(self.hint)

    @property
    def is_tuple(self) -> bool:
        """Whether it takes several values."""
        return get_origin(self.hint) is tuple


def alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the types of a union without None's, or the type itself."""
    kinds = get_args(hint) if isinstance(hint, UnionType) or get_origin(hint) is Union else (hint,)
    return tuple(kind for kind in kinds if kind is not NoneType)


def option_fields(config: type) -> tuple[OptionField, ...]:
    """Return the options of a config class, in the order of its help."""
    hints = get_type_hints(config)
    return tuple(
        OptionField(each, each.metadata["option"], hints[each.name], issubclass(config, ModelOptions))
        for each in fields(config)
        if "option" in each.metadata
    )


class CheckedOptions:
    """Base of frozen config dataclasses: checks types, choices and bounds on construction; paths become Paths."""

    def __post_init__(self) -> None:
        """Check.

        Raises:
            ConfigError: the message names the flag and what is expected.
        """
        for each in option_fields(type(self)):
            value = getattr(self, each.field.name)
            checked = check_value(each, value)
            if checked is not value:
                object.__setattr__(self, each.field.name, checked)
        self._check_together()

    def _check_together(self) -> None:
        """Check options against each other; raises ConfigError."""


class ModelOptions(CheckedOptions):
    """Base of the options of a model, of which only some have a flag of their own."""


def check_value(each: OptionField, value: Any) -> Any:
    """Return `value`, converted to the field's type.

    Raises:
        ConfigError: it has another type, or is outside the option's choices or bounds.
    """
    if value is None and NoneType in get_args(each.hint):
        return None
    if each.is_tuple:
        return _checked_tuple(each, value)
    kinds = each.kinds
    if each.option.completes == "source" and not is_path(value):
        return given_images(each.flag, value)
    value = plain(value)
    if isinstance(value, str) and "\0" in value:
        raise _unexpected(each, brief_repr(value), "text without a NUL")
    if Path in kinds and isinstance(value, str) and value:
        return _expanded_path(each, value)
    if type(value) is int and float in kinds:
        value = math.inf if _is_vast(value) else float(value)
    if each.option.completes in ("source", "model") and isinstance(value, str):
        value = _expanded(value)
    if type(value) not in kinds and not isinstance(value, GivenImages):
        raise _unexpected(each, brief_repr(value))
    if not _is_within(each.option, value):
        raise _unexpected(each, value if isinstance(value, str) and value else brief_repr(value))
    return value


def plain(value: Any) -> Any:
    """Return a subclass's text, a path or a number of another library, such as NumPy, as Python's own type."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        return value if isinstance(value, GivenImages) else str.__str__(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def brief_repr(value: object) -> str:
    """Return the value's repr in one line: an array's has many, and of whole numbers Python writes 4,300 digits."""
    return "a number of more than 300 digits" if _is_vast(value) else message_of(repr(value))


def _is_vast(value: object) -> bool:
    return isinstance(value, int) and abs(value) >= _VAST


def _expanded_path(each: OptionField, value: str) -> Path:
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise _unexpected(each, brief_repr(value), "a path; there is no such user") from error


def _checked_tuple(each: OptionField, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _unexpected(each, brief_repr(value), "a list")
    choices = each.option.choices
    parts = [plain(part) for part in value]
    if get_args(each.hint)[0] is int:
        if not parts or not all(type(part) is int and _is_within(each.option, part) for part in parts):
            raise _unexpected(each, brief_repr(value), f"whole numbers from {each.option.least} to {each.option.most}")
        return tuple(parts)
    if each.option.completes == "prediction":
        parts = [part if isinstance(part, str) else named_images(each.flag, each.name, part) for part in parts]
    for part in parts:
        if not isinstance(part, str) or (choices and part not in choices):
            shown = part if isinstance(part, str) else brief_repr(part)
            raise _unexpected(each, shown, f"some of {', '.join(choices)}" if choices else "a list of texts")
    return tuple(map(_expanded, parts)) if each.option.completes in ("model", "prediction") else tuple(parts)


def _expanded(source: str) -> str:
    """Return a source with the home folder in place of `~`, also behind `NAME=`."""
    if isinstance(source, GivenImages):
        return source
    name, equals, rest = source.partition("=")
    if equals and rest.startswith("~"):
        return f"{name}={os.path.expanduser(rest)}"
    return os.path.expanduser(source) if source.startswith("~") else source


def _is_within(option: Option, value: Any) -> bool:
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if isinstance(value, int | float) and not isinstance(value, bool):
        return not _is_vast(value) and (
            (option.least is None or value >= option.least)
            and (option.most is None or value <= option.most)
            and (option.above is None or value > option.above)
            and (option.below is None or value < option.below)
        )
    if option.pattern is not None and not re.fullmatch(option.pattern, value):
        return False
    return value in option.choices if option.choices else value != ""


def _unexpected(each: OptionField, value: object, expected: str | None = None) -> ConfigError:
    return ConfigError(f"{each.flag} {value}: expected {expected or _expectation(each)}")


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def _expectation(each: OptionField) -> str:
    """Return the words for what an option takes: `a number above 0 and below 1, such as 0.999`."""
    option = each.option
    if option.expected or option.choices:
        return option.expected or f"one of {', '.join(option.choices)}"
    kind = " or ".join(_KINDS[kind] for kind in each.kinds)
    if option.least is not None and option.most is not None:
        return f"{kind} from {option.least} to {option.most}"
    limits = {"of at least": option.least, "above": option.above, "below": option.below}
    words = " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if limit is not None)
    return f"{kind} {words}".rstrip() + (f", such as {option.example}" if option.example else "")
