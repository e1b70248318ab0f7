"""`aecli train`."""

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from aecli.cli.completion import complete_config, complete_registered, starting
from aecli.cli.options import flag_parameters, given, hidden_twin, keyword, parameter, signed
from aecli.configs.options import MODEL, RECIPE, RUN, option_fields
from aecli.configs.train import DataConfig, train_options
from aecli.errors import ConfigError
from aecli.models.options import VAEOptions
from aecli.recipes import names as recipe_names

_NOT_OPTIONS_OF_THE_RUN = ("model", "config", "json", "quiet", "option", "dry_run")

Model = Annotated[
    str,
    typer.Argument(
        help="A registry name (see aecli models) or package.module:Class.",
        metavar="MODEL",
        autocompletion=complete_registered,
    ),
]
ModelOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--option", "-o", help="Any option of the model; repeatable.", rich_help_panel=MODEL, metavar="KEY=VALUE"
    ),
]
Recipe = Annotated[
    str,
    typer.Option(
        help="Bundled option values: the report's, or minutes on a laptop's CPU. Flags win over them.",
        rich_help_panel=RECIPE,
        metavar="|".join(recipe_names()),
        autocompletion=lambda incomplete: starting(recipe_names(), incomplete),
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        help="Option values from a TOML file, or those of a run, by its folder or config.json; flags win over it.",
        rich_help_panel=RECIPE,
        metavar="FILE.toml|RUN",
        autocompletion=complete_config,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print options, size, memory, steps and time of the run, from a few timed steps, and write nothing.",
        rich_help_panel=RUN,
    ),
]


def _parameters() -> list[inspect.Parameter]:
    """Return the command's parameters: the run's options, and those that say where their values come from."""
    options = [parameter(each) for each in train_options()]
    data_options = len(option_fields(DataConfig))
    return [
        keyword("context", typer.Context),
        keyword("model", Model),
        *options[:data_options],
        *(parameter(each) for each in option_fields(VAEOptions)),
        keyword("option", ModelOptions, None),
        keyword("recipe", Recipe, "report"),
        keyword("config", Config, None),
        *options[data_options:],
        *(hidden_twin(each) for each in train_options() if each.option.hidden_flag),
        keyword("dry_run", DryRun, False),
        *flag_parameters(),
    ]


def _train(
    context: typer.Context,
    model: str,
    option: list[str] | None,
    config: Path | None,
    dry_run: bool,
    json: bool,
    quiet: bool,
    **_options: Any,
) -> None:
    """Train MODEL on a folder of images, and write a run folder.

    The same command again resumes its run; other options begin another. The defaults are the report's recipe.
    """
    from aecli.recipes.layering import layer

    flags = {key: value for key, value in given(context).items() if key not in _NOT_OPTIONS_OF_THE_RUN}
    train_config = layer(model, {**flags, "options": _parse_options(option or [])}, config)

    # These import torch; only once the options are known to be valid.
    if dry_run:
        from aecli.cli.dry_run import show_dry_run as show
    else:
        from aecli.cli.live import show_training as show
    show(train_config, as_json=json, quiet=quiet)


train = signed(_train, _parameters())


def _parse_options(texts: list[str]) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise ConfigError(f"--option {text}: expected KEY=VALUE")
        if key in parsed:
            raise ConfigError(f"--option {key}: given twice")
        parsed[key.replace("-", "_")] = value
    return parsed
