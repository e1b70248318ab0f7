"""From a config dataclass to a command: its options, their help and completion, and the config made of their values."""

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Annotated, Any

import typer

from aecli.cli import completion
from aecli.configs.options import OUTPUT, OptionField, option_fields

Parameter = inspect.Parameter
Command = Callable[..., None]

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.", rich_help_panel=OUTPUT)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notices.", rich_help_panel=OUTPUT)]

_COMPLETIONS: dict[str, Any] = {
    "source": completion.complete_source, "prediction": completion.complete_prediction,
    "model": completion.complete_model, "registered": completion.complete_registered,
    "config": completion.complete_config, "device": completion.complete_device,
}  # fmt: skip


def parameter(each: OptionField) -> Parameter:
    """Return an option as a parameter that Typer understands."""
    option, default = each.option, each.default
    kind = _command_line_type(each)
    if option.separated:
        default = ",".join(default)
    elif each.is_tuple or default is None:
        default, kind = None, kind | None
    return Parameter(
        each.name, Parameter.KEYWORD_ONLY, default=Parameter.empty if default is ... else default,
        annotation=Annotated[kind, _info(each)],
    )  # fmt: skip


def _command_line_type(each: OptionField) -> Any:
    if each.option.separated:
        return str
    return list[str] if each.is_tuple else each.kinds[0]


def _info(each: OptionField) -> Any:
    option = each.option
    shared: dict[str, Any] = {"help": option.help, "metavar": option.metavar}
    if option.choices and not option.separated:
        choices = option.choices
        shared |= {"metavar": "|".join(choices),
                   "autocompletion": lambda incomplete: completion.starting(choices, incomplete)}  # fmt: skip
    if option.completes:
        shared["autocompletion"] = _COMPLETIONS[option.completes]
    if option.positional:
        return typer.Argument(**shared)
    if option.shown_default:
        shared["show_default"] = option.shown_default
    # A flag that is named has no --no- twin.
    return typer.Option(each.flag, rich_help_panel=option.panel, **shared)


def hidden_twin(each: OptionField) -> Parameter:
    """Return the older spelling of an option, which still works and stands in no help."""
    kind: Any = each.kinds[0] | None
    annotation = Annotated[kind, typer.Option(each.option.hidden_flag, hidden=True)]
    return Parameter(each.option.hidden_flag.strip("-").replace("-", "_"), Parameter.KEYWORD_ONLY, default=None,
                     annotation=annotation)  # fmt: skip


def signed(function: Command, parameters: Sequence[Parameter]) -> Command:
    """Return `function`, of keyword arguments, with the signature that Typer is to see."""

    def command(**values: Any) -> None:
        function(**values)

    command.__name__, command.__doc__ = function.__name__, function.__doc__
    command.__signature__ = inspect.Signature(list(parameters))  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command


def flag_parameters() -> list[Parameter]:
    """Return `--json` and `--quiet`, which every command has."""
    return [Parameter(name, Parameter.KEYWORD_ONLY, default=False, annotation=kind)
            for name, kind in (("json", Json), ("quiet", Quiet))]  # fmt: skip


def takes(config: type) -> Callable[[Command], Command]:
    """Make a command of a function of a config, `json` and `quiet`."""

    def decorate(function: Command) -> Command:
        @wraps(function)
        def run(json: bool, quiet: bool, **values: Any) -> None:
            function(config_of(config, values), json=json, quiet=quiet)

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
    """The parameters that the user gave, by name, without those that stand at their defaults."""
    return {
        name: value
        for name, value in context.params.items()
        if (source := context.get_parameter_source(name)) is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")
    }
