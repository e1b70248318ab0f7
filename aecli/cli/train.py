"""`aecli train`."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from aecli.cli.options import flag_parameters, given, hidden_twin, keyword, off_twin, parameter, signed
from aecli.configs.options import MODEL, RECIPE, RUN, option, option_fields
from aecli.configs.train import DataConfig, train_options
from aecli.errors import ConfigError
from aecli.models.options import VAEOptions
from aecli.recipes import names as recipe_names


@dataclass(frozen=True)
class _CommandOptions:
    """The options of the command that are not options of the run: where their values come from, and what is done."""

    model: str = option(..., "A registry name (see aecli models) or package.module:Class.", "", metavar="MODEL",
                        completes="registered", positional=True)  # fmt: skip
    model_options: tuple[str, ...] = option((), "Any option of the model; repeatable.", MODEL, name="option",
                                            short_flag="-o", metavar="KEY=VALUE")  # fmt: skip
    recipe: str | None = option(
        None, "Bundled option values, over which flags win. report: the report's; quick: minutes on a laptop's CPU; "
        "sharp: with LPIPS in the loss; gan: with a discriminator too; finetune: the decoder alone, from --init; "
        "others are made for the model of that name.", RECIPE, shown_default="the model's own, or report",
        choices=tuple(recipe_names()),
    )  # fmt: skip
    config: Path | None = option(
        None, "Option values from a TOML file, or those of a run, by its folder or config.json; flags win over it.",
        RECIPE, metavar="FILE.toml|RUN", completes="config",
    )  # fmt: skip
    dry_run: bool = option(
        False, "Print options, size, memory, steps and time of the run, from a few timed steps, and write nothing.", RUN
    )


def _parameters() -> list[inspect.Parameter]:
    """Return the command's parameters, in the order of its help."""
    own = {each.name: parameter(each) for each in option_fields(_CommandOptions)}
    options = [parameter(each) for each in train_options()]
    data_options = len(option_fields(DataConfig))
    return [
        keyword("context", typer.Context),
        own["model"],
        *options[:data_options],
        *(parameter(each) for each in option_fields(VAEOptions)),
        *(own[name] for name in ("option", "recipe", "config")),
        *options[data_options:],
        *(hidden_twin(each) for each in train_options() if each.option.hidden_flag),
        *(off_twin(each) for each in train_options() if each.option.of_recipes),
        own["dry_run"],
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

    The same command again resumes its run; other options begin another. The defaults of ae and vae are the report's
    recipe.
    """
    from aecli.cli.signposts import refuse_run
    from aecli.recipes.layering import layer

    refuse_run(model, Path(_options["runs"]))
    not_of_the_run = ("model", "config", "json", "quiet", "option", "dry_run")
    flags = {key: value for key, value in given(context).items() if key not in not_of_the_run}
    for each in train_options():
        if each.option.of_recipes and flags.pop(f"no_{each.name}", False):
            if flags.get(each.name):
                raise ConfigError(f"{each.flag} and {each.off_flag} exclude each other")
            flags[each.name] = False
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
            raise ConfigError(f"--option {text}: expected KEY=VALUE\nhint: the folder of a run is --out DIR")
        if key in parsed:
            raise ConfigError(f"--option {key}: given twice")
        parsed[key.replace("-", "_")] = value
    return parsed
