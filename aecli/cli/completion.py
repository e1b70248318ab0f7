"""What the shell offers for a value that is being typed: words that aecli knows, its runs, and paths of the right kind.

Nothing here imports what computes. An empty list means that the shell completes paths in its own way, which knows about
quotes and `~`, and puts no blank after a folder; so nothing is offered where only folders could be.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import typer

from aecli.configs import ReconstructConfig

# Several with each prefix: what stands alone gets a blank after it.
_SOURCES = ("demo", "torchvision:", "torchvision:CIFAR10", "torchvision:STL10", "hf:", "hf:NAME", "hf:NAME:SPLIT")
_ARCHIVES = (".zip", ".tar", ".parquet")
_WEIGHTS = (".safetensors",)
# Shells put what is offered into the command line as it is, and some evaluate it: a stranger's file name is left out.
_HARMLESS = re.compile(r"[\w@%+=:,./-]+")


def starting(values: Sequence[str], incomplete: str) -> list[str]:
    """Return those of `values` that begin with what was typed."""
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

    runs = Path(context.params.get("runs") or ReconstructConfig.runs)
    try:
        known = [str(run.path) for run in list_runs(runs)]
    except OSError:
        known = []
    paths = [
        path.rstrip("/") if RunFolder(Path(path)).is_ours() else path
        for path in (_paths(incomplete, _WEIGHTS) if incomplete else [])
        if not (known and path == f"{runs}/")  # its runs are offered in its place
    ]
    names = [name for name in registry.names() if name not in registry.PRIORS]
    return _offered([*names, *known, *paths], incomplete)


def complete_source(incomplete: str) -> list[str]:
    """SOURCEs of images: the words, folders, and files that hold images."""
    return _offered([*_SOURCES, *_paths(incomplete, _ARCHIVES)], incomplete)


def complete_prediction(incomplete: str) -> list[str]:
    """`[NAME=]SOURCE`; after a NAME, paths too, which shells don't see there (bash does, and asks for none)."""
    name, equals, source = incomplete.partition("=")
    if not equals:
        return complete_source(incomplete)
    return [f"{name}={value}" for value in _harmless([*_SOURCES, *_paths(source, _ARCHIVES)], source)]


def complete_config(incomplete: str) -> list[str]:
    """Files of options: TOML, and the config.json of a run, which stands for its folder too."""
    return _offered(_paths(incomplete, (".toml", ".json")), incomplete)


def _offered(values: Sequence[str], incomplete: str) -> list[str]:
    found = _harmless(values, incomplete)
    return [] if all(value.endswith("/") for value in found) else found


def _harmless(values: Sequence[str], incomplete: str) -> list[str]:
    """Those that begin with what was typed, once each, but for names that a shell could take for more than a name."""
    return [value for value in dict.fromkeys(starting(values, incomplete)) if _HARMLESS.fullmatch(value)]


def _paths(incomplete: str, suffixes: tuple[str, ...]) -> list[str]:
    """Folders (`name/`) and files with one of `suffixes` whose path begins with what was typed, sorted."""
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
