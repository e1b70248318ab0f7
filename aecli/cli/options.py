"""From a config dataclass to a command: its options, their help and completion, and how it is run."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any, NamedTuple

import typer

from aecli.cli import completion
from aecli.configs.checks import TABLE_FORMATS
from aecli.configs.options import OUTPUT, OptionField, option, option_fields
from aecli.errors import AecliError, ConfigError
from aecli.progress import Listener
from aecli.runtime.launch import launch

Parameter = inspect.Parameter
Command = Callable[..., None]

_COMPLETIONS: dict[str, Any] = {
    "source": completion.complete_source,
    "prediction": completion.complete_prediction,
    "model": completion.complete_model,
    "registered": completion.complete_registered,
    "config": completion.complete_config,
    "device": completion.complete_device,
}


def keyword(name: str, annotation: Any, default: Any = Parameter.empty) -> Parameter:
    """Return a keyword-only parameter of a command."""
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def parameter(each: OptionField) -> Parameter:
    """Return an option as a parameter that Typer understands."""
    kind: Any = str if each.option.separated else list[str] if each.is_tuple else each.kinds[0]
    default = each.default
    if each.option.separated:
        default = ",".join(default)
    elif each.is_tuple or default is None:
        default, kind = None, kind | None
    return keyword(each.name, Annotated[kind, _info(each)], Parameter.empty if default is ... else default)


def _info(each: OptionField) -> Any:
    known = each.option
    details: dict[str, Any] = {"help": known.help, "metavar": known.metavar}
    if known.choices and not known.separated:
        details["metavar"] = "|".join(known.choices)
        details["autocompletion"] = lambda incomplete: completion.starting(known.choices, incomplete)
    if known.completes:
        details["autocompletion"] = _COMPLETIONS[known.completes]
    if known.positional:
        return typer.Argument(**details)
    if known.shown_default:
        details["show_default"] = known.shown_default
    # Typer adds a --no- twin only to flags that it names itself.
    flags = [each.flag, known.short_flag] if known.short_flag else [each.flag]
    return typer.Option(*flags, rich_help_panel=known.panel, **details)


def hidden_twin(each: OptionField) -> Parameter:
    """Return the older spelling of an option, which still works but is in no help."""
    kind: Any = each.kinds[0] | None
    flag = each.option.hidden_flag
    return keyword(flag.strip("-").replace("-", "_"), Annotated[kind, typer.Option(flag, hidden=True)], None)


def off_twin(each: OptionField) -> Parameter:
    """Return the flag that switches another off; it is named in the other's help."""
    return keyword(f"no_{each.name}", Annotated[bool, typer.Option(each.off_flag, hidden=True)], False)


def signed(function: Command, parameters: Sequence[Parameter]) -> Command:
    """Return `function`, of keyword arguments, with the signature that Typer is to see."""

    def command(**values: Any) -> None:
        function(**values)

    command.__name__, command.__doc__ = function.__name__, function.__doc__
    command.__signature__ = inspect.Signature(list(parameters))  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command


@dataclass(frozen=True)
class _Flags:
    """Options of every command."""

    json: bool = option(False, "Print the result as one JSON document.", OUTPUT)
    quiet: bool = option(False, "No progress and no notices.", OUTPUT, short_flag="-q")


def flag_parameters() -> list[Parameter]:
    """Return the parameters that every command has."""
    return [parameter(each) for each in option_fields(_Flags)]


class Output(NamedTuple):
    """What a command prints: one JSON document, or what `show` prints, and then the command to type next, if any.

    A failure is reported after it.
    """

    document: dict[str, Any]
    show: Callable[[], None]
    failure: AecliError | None = None
    next_command: str | None = None


def takes(config: type, one_process: bool = False) -> Callable[[Callable[[Any, Listener], Output]], Command]:
    """Make a command of a function of a config and a listener; with `one_process`, only rank 0 runs it."""

    def decorate(function: Callable[[Any, Listener], Output]) -> Command:
        @wraps(function)
        def run(json: bool, quiet: bool, **values: Any) -> None:
            from aecli.cli.console import print_json, show_next
            from aecli.cli.display import open_display

            made = config_of(config, values)
            if one_process and launch().rank:
                return
            if json and getattr(made, "format", "") in TABLE_FORMATS[1:]:
                raise ConfigError(f"--format {made.format}: --json prints no table")
            with open_display(quiet) as display:
                output = function(made, display)
            if json:
                print_json(output.document)
            else:
                output.show()
                if output.next_command and not quiet:
                    show_next(output.next_command)
            if output.failure is not None:
                raise output.failure

        return signed(run, [*map(parameter, option_fields(config)), *flag_parameters()])

    return decorate


def config_of(config: type, values: dict[str, Any]) -> Any:
    """Return the config made of the command line's values."""
    made = {}
    for each in option_fields(config):
        value = values[each.name]
        if each.option.separated:
            value = tuple(part.strip() for part in value.split(","))
        elif each.is_tuple:
            value = tuple(value or ())
        made[each.field.name] = value
    return config(**made)


def given(context: typer.Context) -> dict[str, Any]:
    """Return the parameters that the user gave, by name, without those left at their defaults."""
    return {
        name: value
        for name, value in context.params.items()
        if (source := context.get_parameter_source(name)) is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")
    }
