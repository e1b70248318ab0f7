"""`aecli train`."""

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from aecli.cli.completion import complete_config, complete_registered, starting
from aecli.cli.options import flag_parameters, given, hidden_twin, parameter, signed
from aecli.configs.options import MODEL, RECIPE, RUN, option_fields
from aecli.configs.train import DataConfig, train_options
from aecli.errors import ConfigError
from aecli.models.options import VAEOptions
from aecli.recipes.layering import layer
from aecli.recipes.layering import names as recipe_names

# Parameters of the command that are no option of the run.
_NOT_OF_THE_RUN = ("model", "config", "json", "quiet", "option", "dry_run")

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
    keyword = inspect.Parameter.KEYWORD_ONLY
    of_the_run = [parameter(each) for each in train_options()]
    of_the_data = len(option_fields(DataConfig))
    return [
        inspect.Parameter("context", keyword, annotation=typer.Context),
        inspect.Parameter("model", keyword, annotation=Model),
        *of_the_run[:of_the_data],
        *(parameter(each) for each in option_fields(VAEOptions)),
        inspect.Parameter("option", keyword, default=None, annotation=ModelOptions),
        inspect.Parameter("recipe", keyword, default="report", annotation=Recipe),
        inspect.Parameter("config", keyword, default=None, annotation=Config),
        *of_the_run[of_the_data:],
        *(hidden_twin(each) for each in train_options() if each.option.hidden_flag),
        inspect.Parameter("dry_run", keyword, default=False, annotation=DryRun),
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
    flags = {key: value for key, value in given(context).items() if key not in _NOT_OF_THE_RUN}
    train_config = layer(model, {**flags, "options": _parse_options(option or [])}, config)

    if dry_run:
        from aecli.cli.dry_run import show_dry_run

        show_dry_run(train_config, as_json=json, quiet=quiet)
        return

    from aecli.cli.live import show_training  # after the options are known to be right: this imports torch

    show_training(train_config, as_json=json, quiet=quiet)


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
