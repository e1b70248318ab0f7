"""Recipes: bundled files of option values, and how they are layered under a user's own."""

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from aecli.configs import TrainConfig
from aecli.errors import ConfigError

_FOLDER = Path(__file__).parent
MODEL_OPTIONS = ("width", "latent_dim", "beta")  # the model options that have flags of their own


def names() -> list[str]:
    """Names of the built-in recipes."""
    return sorted(file.stem for file in _FOLDER.glob("*.toml"))


def layer(model: str, flags: Mapping[str, Any], config: Path | None = None) -> TrainConfig:
    """Make a TrainConfig: the recipe's values, over them the config file's, over them `flags` (only those given).

    The recipe is that of the flags, else of the file, else `report`. A recipe's width, latent_dim and beta count only
    where the model has such an option.

    Raises:
        ConfigError: an unknown recipe, key or value; the message names it.
    """
    from_file = _normal_form(_read(config), str(config)) if config else {}
    from_flags = _normal_form(flags, "the command line")
    recipe = from_flags.pop("recipe", None) or from_file.pop("recipe", None) or "report"
    from_file.pop("recipe", None)
    if recipe not in names():
        raise ConfigError(f"--recipe {recipe}: expected one of {', '.join(names())}")
    values = _normal_form(_read(_FOLDER / f"{recipe}.toml"), recipe)
    defaults = values.pop("options")
    options = {**from_file.pop("options", {}), **from_flags.pop("options", {})}
    given = {**from_file, **from_flags}
    if given.get("val_data") is not None and "val_fraction" in given:
        raise ConfigError("--val-fraction and --val-data: give one; all of --val-data is for validation")
    merged = {**values, **given}
    return TrainConfig(model=model, options=options, model_defaults=defaults, **merged)


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {file}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {file}: not valid TOML: {error}") from error


def _normal_form(values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Spell keys as the dataclass does, gather model options in `options`, turn paths into Paths."""
    known = {field.name for field in fields(TrainConfig)} - {"model", "model_defaults"} | {"recipe"}
    found: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name in ("option", "options"):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{origin}: {key} has to be a table of model options")
            options = {**value, **options}
        elif name in MODEL_OPTIONS:
            if name in options:
                raise ConfigError(f"{origin}: {name} is given twice")
            options[name] = value
        elif name not in known:
            raise ConfigError(f"{origin}: no option is called {key!r}; there are {', '.join(sorted(known))}")
        else:
            found[name] = Path(value) if name in ("out", "runs") and value is not None else value
    return {**found, "options": options}
