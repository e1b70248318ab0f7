"""From a config dataclass to a command: its options, their help and completion, and the config made of their values."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from aecli.cli import completion
from aecli.cli.completion import complete_model, starting
from aecli.configs import PRECISIONS
from aecli.configs.options import OptionField, option_fields

DATA, MODEL, RECIPE, RUN, MACHINE, OUTPUT = "Data", "Model", "Recipe", "Run", "Machine", "Output"


Parameter = inspect.Parameter
Command = Callable[..., None]


def choice(values: tuple[str, ...] | list[str]) -> dict[str, Any]:
    """Typer arguments of an option that takes one of `values`; the config dataclass is what checks it."""
    return {"metavar": "|".join(values), "autocompletion": lambda incomplete: starting(values, incomplete)}


def given(context: typer.Context) -> dict[str, Any]:
    """The parameters that the user gave, by name, without those that stand at their defaults."""
    return {
        name: value
        for name, value in context.params.items()
        if (source := context.get_parameter_source(name)) is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")
    }


Device = Annotated[
    str,
    typer.Option(
        help="Where to compute; auto picks CUDA, then MPS, then the CPU.",
        rich_help_panel=MACHINE,
        metavar="auto|cpu|cuda|cuda:N|mps",
        autocompletion=lambda incomplete: starting(["auto", "cpu", "cuda", "mps"], incomplete),
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        help="Arithmetic; auto trains in bf16 where the hardware multiplies it fast, and runs everything else in fp32.",
        rich_help_panel=MACHINE,
        **choice(PRECISIONS),
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Threads that decode images.", show_default="as many as CPUs", rich_help_panel=MACHINE, metavar="INT"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.", rich_help_panel=OUTPUT)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notices.", rich_help_panel=OUTPUT)]
Seed = Annotated[int, typer.Option(help="Where all randomness comes from.", rich_help_panel=RUN)]
Runs = Annotated[Path, typer.Option(help="The folder that runs lie in.", rich_help_panel=RUN)]
LoadedModel = Annotated[
    str,
    typer.Option(
        "--model",
        help="A registry name (its newest run under --runs), a run folder, or a .safetensors file.",
        rich_help_panel=MODEL,
        metavar="MODEL",
        autocompletion=complete_model,
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Write into a folder that already holds files, and over those of the same name; never over what is read.",
        rich_help_panel=OUTPUT,
    ),
]
SOURCE = "A folder, a .zip of one, tar or Parquet shards, demo, torchvision:NAME or hf:NAME."


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
        annotation=Annotated[kind, _info(each, kind)],
    )  # fmt: skip


def _command_line_type(each: OptionField) -> Any:
    if each.option.separated:
        return str
    return list[str] if each.is_tuple else each.kinds[0]


def _info(each: OptionField, kind: Any) -> Any:
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


def takes(config: type, extra: Sequence[Parameter] = ()) -> Callable[[Command], Command]:
    """Make a command of a function of a config, `json` and `quiet`, and of what `extra` parameters it has."""
    options = option_fields(config)

    def decorate(function: Command) -> Command:
        def run(json: bool, quiet: bool, **values: Any) -> None:
            own = {each.name: values.pop(each.name) for each in extra}
            function(config_of(config, values), json=json, quiet=quiet, **own)

        run.__name__, run.__doc__ = function.__name__, function.__doc__
        return signed(run, [*map(parameter, options), *extra, *flag_parameters()])

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
