"""Recipes: bundled files of option values, and how they are layered under a user's own."""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aecli.configs.checks import MODEL_FLAGS
from aecli.configs.options import OptionField, check_value
from aecli.configs.train import OLD_NAMES, RunConfig, TrainConfig, train_options
from aecli.errors import ConfigError, message_of
from aecli.runs.folder import RunFolder, locate

LARGEST_CONFIG = 2**20  # bytes
COMMAND_LINE = "the command line"

_PLACE = ("out", "runs", "restart")  # where a run lies, and what a command did to it
_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Names of the built-in recipes."""
    return sorted(file.stem for file in _FOLDER.glob("*.toml"))


def layer(model: str, flags: Mapping[str, Any], config: Path | None = None) -> TrainConfig:
    """Make a TrainConfig: the recipe's values, over them the config file's, over them `flags` (only those given).

    `config` is a TOML file, or a run's folder or config.json, whose options are taken but for where it lies.

    The recipe is that of the flags, else of the file, else the one named like the model, else `report`. A recipe's
    width, latent_dim and beta count only where the model has such an option. A prior's images are, where nothing else
    is said, those of the run of its autoencoder.

    Raises:
        ConfigError: an unknown recipe, key or value, or a run of another model; the message names it.
        CheckpointError: a run's config.json that is damaged.
    """
    from_file = _normal_form(_values_of(config, model), str(config)) if config else {}
    from_flags = _normal_form(flags, COMMAND_LINE)
    recipe = {"recipe": model if model in names() else "report", **from_file, **from_flags}["recipe"]
    from_file.pop("recipe", None)
    from_flags.pop("recipe", None)
    if recipe not in names():
        raise ConfigError(f"--recipe {recipe}: expected one of {', '.join(names())}")
    values = _normal_form(_read(_FOLDER / f"{recipe}.toml"), recipe)
    defaults = values.pop("options")
    options = {**from_file.pop("options", {}), **from_flags.pop("options", {})}
    for given in (from_file, from_flags):
        if given.get("val_data") is not None and "val_fraction" in given:
            raise ConfigError("--val-fraction and --val-data: give one; all of --val-data is for validation")
        if given.get("steps") is not None and "epochs" in given:
            raise ConfigError("--steps and --epochs: give one; both say when training ends")
    if "val_fraction" in from_flags:
        from_file.pop("val_data", None)
    if "epochs" in from_flags:
        from_file.pop("steps", None)
    given = {**from_file, **from_flags}
    images = _images_of(given) if given.get("autoencoder") is not None else {}
    return TrainConfig(model=model, options=options, model_defaults=defaults, **{**values, **images, **given})


def _images_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that say what images the run of `options`' autoencoder was trained on; none without a run."""
    run = locate(options["autoencoder"], options.get("runs", RunConfig.runs)).run
    if run is None:
        return {}
    recorded = run.read_config()["options"]
    chosen = {key: recorded[key] for key in ("data", "image_size", "fit")}
    is_same = "data" not in options or os.path.realpath(options["data"]) == os.path.realpath(recorded["data"])
    if is_same and not options.keys() & {"val_data", "val_fraction"}:  # other images are split as any are
        split = "val_data" if recorded.get("val_data") is not None else "val_fraction"
        chosen[split] = recorded[split]
    return chosen


def _values_of(config: Path, model: str) -> dict[str, Any]:
    run = RunFolder(config if config.is_dir() else config.parent)
    is_runs = run.exists() and config in (run.path, run.config)
    return _run_values(run, model) if is_runs else _read(config)


def _run_values(run: RunFolder, model: str) -> dict[str, Any]:
    """The options that a run was begun with, but for where it lies; none of two that exclude each other."""
    options = run.read_config()["options"]
    if options.get("model") != model:
        raise ConfigError(f"--config {run.path} is a run of {message_of(options.get('model'))}, not of {model}")
    left_out = {"model", "model_defaults", *_PLACE}
    left_out.add("val_fraction" if options.get("val_data") is not None else "val_data")
    left_out.add("epochs" if options.get("steps") is not None else "steps")
    known = {each.name for each in train_options()} | {"options"}  # what a newer aecli adds is left aside
    kept = {key: value for key, value in options.items() if key in known - left_out}
    if isinstance(kept.get("autoencoder"), Mapping):
        kept["autoencoder"] = kept["autoencoder"].get("path")
    return kept


def _read(file: Path) -> dict[str, Any]:
    try:
        with open(file, "rb") as opened:  # it may be a pipe, such as the shell's <(…), or a device without an end
            content = opened.read(LARGEST_CONFIG + 1)
        if len(content) > LARGEST_CONFIG:
            raise ConfigError(f"--config {file}: more than {LARGEST_CONFIG} bytes, which no file of options has")
        return tomllib.loads(content.decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"--config {file}: {error.strerror or error}") from error
    except RecursionError as error:
        raise ConfigError(f"--config {file}: nested too deeply") from error
    except ValueError as error:
        raise ConfigError(f"--config {file}: not valid TOML: {error}") from error


def _normal_form(values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Spell keys as the config does, check values, and gather the model's options in `options`."""
    known = {each.name: each for each in train_options()}
    found: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for key, value in values.items():
        name = {"option": "options"}.get(key, key.replace("-", "_"))
        name = OLD_NAMES.get(name, name)
        if name == "options":
            pairs = _table(value, key, origin)
        elif name in MODEL_FLAGS:
            pairs = {name: value}
        elif name in known or name == "recipe":
            pairs = {}
            if name in found:
                raise ConfigError(f"{origin}: {name} is given twice")
            found[name] = _checked(known[name], value, origin) if name in known else _recipe_name(value, origin)
        else:
            existing = ", ".join(sorted({*known, "recipe", "options", *MODEL_FLAGS}))
            raise ConfigError(f"{origin}: unknown option {key!r}\nhint: one of {existing}")
        if twice := sorted(pairs.keys() & options.keys()):
            raise ConfigError(f"{origin}: {twice[0]} is given twice")
        options |= pairs
    return {**found, "options": options}


def _table(value: Any, key: str, origin: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{origin}: {key} has to be a table of model options")
    return dict(value)


def _checked(option: OptionField, value: Any, origin: str) -> Any:
    try:
        return check_value(option, value)
    except ConfigError as error:
        if origin == COMMAND_LINE:
            raise
        raise ConfigError(f"{origin}: {error}") from error


def _recipe_name(value: Any, origin: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{origin}: --recipe {value!r}: expected text")
    return value
