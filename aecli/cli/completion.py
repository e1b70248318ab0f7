"""Shell completion of values: known words, runs, and paths of the right kind. No torch here.

For an empty list the shell completes paths itself, which handles quotes and `~` and adds no blank after a folder. So
nothing is returned where there are only folders.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import typer

from aecli.configs.train import RunConfig

# Several with each prefix, because shells add a blank after a single completion.
_SOURCES = ("demo", "torchvision:", "torchvision:CIFAR10", "torchvision:STL10", "hf:", "hf:NAME", "hf:NAME:SPLIT")
_ARCHIVES = (".zip", ".tar", ".parquet")
_WEIGHTS = (".safetensors",)
# Shells insert completions as they are, and some evaluate them: file names with other characters are left out.
_HARMLESS = re.compile(r"[\w@%+=:,./-]+")


def starting(values: Sequence[str], incomplete: str) -> list[str]:
    """Return the `values` that start with `incomplete`."""
    return [value for value in values if value.startswith(incomplete)]


def complete_registered(incomplete: str) -> list[str]:
    """Names of models to train."""
    from aecli.models import registry

    return starting(registry.names(), incomplete)


def complete_device(incomplete: str) -> list[str]:
    """Kinds of devices."""
    return starting(["auto", "cpu", "cuda", "mps"], incomplete)


def complete_model(context: typer.Context, incomplete: str) -> list[str]:
    """Trained autoencoders: registry names, run folders under `--runs`, and any run folder or `.safetensors` file."""
    from aecli.models import registry
    from aecli.runs.folder import RunFolder, list_runs

    runs = Path(context.params.get("runs") or RunConfig.runs)
    try:
        known = [str(run.path) for run in list_runs(runs)]
    except OSError:
        known = []
    paths = [
        path.rstrip("/") if RunFolder(Path(path)).is_ours() else path
        for path in (_paths(incomplete, _WEIGHTS) if incomplete else [])
        if not (known and path == f"{runs}/")  # its runs are listed instead
    ]
    names = [name for name in registry.names() if name not in registry.PRIORS]
    return _offered([*names, *known, *paths], incomplete)


def complete_source(incomplete: str) -> list[str]:
    """SOURCEs of images: known words, folders, and archives."""
    return _offered([*_SOURCES, *_paths(incomplete, _ARCHIVES)], incomplete)


def complete_prediction(incomplete: str) -> list[str]:
    """`[NAME=]SOURCE`; after NAME= with paths, which most shells don't complete there."""
    name, equals, source = incomplete.partition("=")
    if not equals:
        return complete_source(incomplete)
    return [f"{name}={value}" for value in _harmless([*_SOURCES, *_paths(source, _ARCHIVES)], source)]


def complete_config(incomplete: str) -> list[str]:
    """Files of options: TOML, or the config.json of a run."""
    return _offered(_paths(incomplete, (".toml", ".json")), incomplete)


def _offered(values: Sequence[str], incomplete: str) -> list[str]:
    found = _harmless(values, incomplete)
    return [] if all(value.endswith("/") for value in found) else found


def _harmless(values: Sequence[str], incomplete: str) -> list[str]:
    """Return the distinct `values` that start with `incomplete`, without those that a shell could evaluate."""
    return [value for value in dict.fromkeys(starting(values, incomplete)) if _HARMLESS.fullmatch(value)]


def _paths(incomplete: str, suffixes: tuple[str, ...]) -> list[str]:
    """Return folders (`name/`) and files with one of `suffixes` whose paths start with `incomplete`, sorted."""
    folder, start = os.path.split(incomplete)
    before = incomplete.removesuffix(start) if start else incomplete
    found = []
    try:
        with os.scandir(folder or ".") as scan:
            for entry in scan:
                if not entry.name.startswith(start) or (entry.name.startswith(".") and not start):
                    continue
                if entry.is_dir():
                    found.append(f"{before}{entry.name}/")
                elif entry.name.lower().endswith(suffixes):
                    found.append(before + entry.name)
    except OSError:
        return []
    return sorted(found)
