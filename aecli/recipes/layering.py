"""Layers of option values: a recipe's, over them a file's, over them the command line's."""

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aecli.configs.checks import MODEL_FLAGS, RANDOM_CROP
from aecli.configs.options import OptionField, check_value
from aecli.configs.train import OLD_NAMES, RunConfig, TrainConfig, train_options
from aecli.errors import ConfigError, message_of
from aecli.recipes import FOLDER, names
from aecli.runs.folder import RunFolder, locate

LARGEST_CONFIG = 2**20  # bytes
COMMAND_LINE = "the command line"

_PLACE = ("out", "runs", "restart")  # options that repeating a run doesn't take from it
_EXCLUSIVE = (
    ("val_data", "val_fraction", "--val-fraction and --val-data: give one; all of --val-data is for validation"),
    ("steps", "epochs", "--steps and --epochs: give one; both say when training ends"),
)


@dataclass(frozen=True)
class _Layer:
    """Checked option values of one origin: those of `aecli train`, the model's own, and the name of a recipe."""

    values: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    recipe: str | None = None


def layer(model: str, flags: Mapping[str, Any], config: Path | None = None) -> TrainConfig:
    """Make a TrainConfig of a recipe's values, over them the config file's, over them `flags` (only those given).

    `config` is a TOML file, or a run to repeat (its folder or config.json).

    The recipe is that of the flags, else of the file, else the one named like the model, else `report`. A recipe may
    have values of its own for a model. Its width, latent_dim and beta are used only if the model has such an option. A
    prior is by default trained on the images of its autoencoder's run, and a run with `init` at the image size of
    those weights.

    Raises:
        ConfigError: an unknown recipe, key or value, or a run of another model; the message names it.
        CheckpointError: a run's config.json is damaged.
    """
    from_file = _parse(_read_config(config, model), str(config)) if config else _Layer()
    from_flags = _parse(flags, COMMAND_LINE)
    named = [each.recipe for each in (from_flags, from_file) if each.recipe is not None]
    recipe = [*named, model if model in names() else "report"][0]
    if recipe not in names():
        raise ConfigError(f"--recipe {recipe}: expected one of {', '.join(names())}")
    base = _parse(_read_recipe(recipe, model), recipe)
    for each in (from_file, from_flags):
        _give_way(base.values, each.values)
    for key, other, message in _EXCLUSIVE:
        if any(each.values.get(key) is not None and other in each.values for each in (from_file, from_flags)):
            raise ConfigError(message)
        if other in from_flags.values:
            from_file.values.pop(key, None)
    given = {**from_file.values, **from_flags.values}
    images = _images_of(given) if given.get("autoencoder") is not None else _input_of_weights(model, given)
    return TrainConfig(model=model, options={**from_file.options, **from_flags.options}, model_defaults=base.options,
                       **{**base.values, **images, **given})  # fmt: skip


def _read_recipe(recipe: str, model: str) -> dict[str, Any]:
    """Return a recipe's values; those in a table named like the model win over the others."""
    values = _read_toml(FOLDER / f"{recipe}.toml")
    tables = {key: values.pop(key) for key, value in list(values.items()) if isinstance(value, dict)}
    own: dict[str, Any] = tables.get(model, {})
    _give_way(values, own)
    return {**values, **own}


def _give_way(values: dict[str, Any], over: Mapping[str, Any]) -> None:
    """Drop from `values` both of two that exclude each other where one of them is given in `over`."""
    for key, other, _ in _EXCLUSIVE:
        if over.keys() & {key, other}:
            values.pop(key, None)
            values.pop(other, None)


def _images_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data options of the run of `options`' autoencoder; none if it is in no run folder."""
    run = locate(options["autoencoder"], options.get("runs", RunConfig.runs)).run
    if run is None:
        return {}
    recorded = run.read_config()["options"]
    chosen = {key: recorded[key] for key in ("data", "image_size", "fit", "background")}
    if chosen["fit"] == RANDOM_CROP:  # latents are of one size
        chosen["fit"] = "crop"
    is_same = "data" not in options or os.path.realpath(options["data"]) == os.path.realpath(recorded["data"])
    if is_same and not options.keys() & {"val_data", "val_fraction"}:  # other images get a split of their own
        split = "val_data" if recorded.get("val_data") is not None else "val_fraction"
        chosen[split] = recorded[split]
    return chosen


def _input_of_weights(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the image size, fit and background of the weights that a run begins from, as far as they say them."""
    if options.get("init") is None:
        return {}
    from aecli.runs.initial_weights import find_initial_weights  # imports torch

    found = find_initial_weights(options["init"], model, options.get("runs", RunConfig.runs), options.get("out"))
    if found.document.get("assumed"):
        return {}
    return {key: found.document[key] for key in ("image_size", "fit", "background") if key in found.document}


def _read_config(config: Path, model: str) -> dict[str, Any]:
    run = RunFolder(config if config.is_dir() else config.parent)
    return _read_run(run, model) if run.exists() and config in (run.path, run.config) else _read_toml(config)


def _read_run(run: RunFolder, model: str) -> dict[str, Any]:
    """Return the options that a run was begun with; of two that exclude each other, the one that was given."""
    options = run.read_config()["options"]
    if options.get("model") != model:
        raise ConfigError(f"--config {run.path}: a run of {message_of(options.get('model'))}, not of {model}")
    left_out = {"model", "model_defaults", *_PLACE}
    left_out |= {other if options.get(key) is not None else key for key, other, _ in _EXCLUSIVE}
    known = {each.name for each in train_options()} | {"options"}  # a newer aecli may have written others
    kept = {key: value for key, value in options.items() if key in known - left_out}
    if isinstance(kept.get("options"), Mapping):  # an older aecli had fewer, with the values that are defaults today
        kept["options"] = {**_default_options(model, kept["options"]), **kept["options"]}
    for key, part in (("autoencoder", "path"), ("init", "given")):
        if isinstance(kept.get(key), Mapping):
            kept[key] = kept[key].get(part)
    return kept


def _default_options(model: str, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of the options of a run's model, of which some are recorded."""
    from aecli.models import registry  # imports the model, and torch with it

    name = registry.PRIOR_OF_CODES if model in registry.PRIORS and "levels" in recorded else model
    fields = dataclasses.fields(registry.load(name).Options)
    return {each.name: each.default for each in fields if each.default is not dataclasses.MISSING}


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        with open(file, "rb") as opened:  # its size is unknown: it may be a pipe, such as the shell's <(…)
            content = opened.read(LARGEST_CONFIG + 1)
        if len(content) > LARGEST_CONFIG:
            raise ConfigError(f"--config {file}: more than {LARGEST_CONFIG} bytes\nhint: is it a file of options?")
        return tomllib.loads(content.decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"--config {file}: {error.strerror or error}") from error
    except RecursionError as error:
        raise ConfigError(f"--config {file}: nested too deeply") from error
    except ValueError as error:
        raise ConfigError(f"--config {file}: not valid TOML: {error}") from error


def _parse(values: Mapping[str, Any], origin: str) -> _Layer:
    """Check option values. Keys are spelled with - or _; the model's own may be in a table `options` or beside it."""
    known = {each.name: each for each in train_options()}
    found: dict[str, Any] = {}
    options: dict[str, Any] = {}
    recipe = None
    for key, value in values.items():
        name = OLD_NAMES.get(key.replace("-", "_"), key.replace("-", "_"))
        if name in found:
            raise ConfigError(f"{origin}: {name} is given twice")
        if name in ("option", "options") or name in MODEL_FLAGS:
            pairs = {name: value} if name in MODEL_FLAGS else value
            if not isinstance(pairs, Mapping):
                raise ConfigError(f"{origin}: {key} {value!r}: expected a table of model options")
            if twice := sorted(pairs.keys() & options.keys()):
                raise ConfigError(f"{origin}: {twice[0]} is given twice")
            options |= pairs
        elif name in known:
            found[name] = _check(known[name], value, origin)
        elif name != "recipe":
            existing = ", ".join(sorted({*known, "recipe", "options", *MODEL_FLAGS}))
            raise ConfigError(f"{origin}: unknown option {key!r}\nhint: one of {existing}")
        elif isinstance(value, str):
            recipe = value
        else:
            raise ConfigError(f"{origin}: --recipe {value!r}: expected text")
    return _Layer(found, options, recipe)


def _check(option: OptionField, value: Any, origin: str) -> Any:
    try:
        if option.option.completes == "source" and not isinstance(value, str | Path | None):
            raise ConfigError(f"{option.flag} {value!r}: expected text")  # a list of paths would be images of Python
        return check_value(option, value)
    except ConfigError as error:
        if origin == COMMAND_LINE:
            raise
        raise ConfigError(f"{origin}: {error}") from error
