"""Folders as diffusers writes them: a config beside weights in one file or several. Imported as commands start."""

from pathlib import Path
from typing import Any

from aecli.errors import CheckpointError, message_of
from aecli.runs.plain_weights import pickle_error
from aecli.storage.strict_json import read_json

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model"
PARTS = ("vae", "vqvae")  # of a pipeline's folder, those that hold autoencoders
_INDEX = ".index.json"


def find_weights(folder: Path) -> Path | None:
    """Return the weights in a folder of diffusers' or in that of a pipeline's autoencoder; None if it is neither.

    That is a safetensors file, or the index of several.

    Raises:
        CheckpointError: it is one of them, without weights in safetensors.
    """
    for place in (folder, *(folder / part for part in PARTS)):
        if found := _weights_in(place):
            return found
        if pickles := sorted(place.glob(f"{WEIGHTS}*.bin")):
            raise pickle_error(pickles[0])
        if _has_class(place / CONFIG):
            raise CheckpointError(f"{place} has no {WEIGHTS}.safetensors\nhint: put it there, beside the {CONFIG}")
    return None


def _weights_in(folder: Path) -> Path | None:
    """Return the weights of full precision, else of a variant such as `fp16`."""
    whole = [folder / f"{WEIGHTS}.safetensors", folder / f"{WEIGHTS}.safetensors{_INDEX}"]
    variants = sorted(each for each in folder.glob(f"{WEIGHTS}.*.safetensors"))
    return next((path for path in (*whole, *variants) if path.is_file()), None)


def _has_class(config: Path) -> bool:
    try:
        document = read_json(config)
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and "_class_name" in document


def is_index(path: Path) -> bool:
    """Whether a path is named like the index of weights in several files."""
    return path.name.endswith(_INDEX)


def shards(index: Path) -> list[Path]:
    """Return the files that an index names, in the order of their names; raises CheckpointError."""
    try:
        document = read_json(index)
        names = document.get("weight_map") if isinstance(document, dict) else None
        if not isinstance(names, dict) or not names or not all(map(_is_shard_name, names.values())):
            raise ValueError("no weight_map of names of .safetensors files")
    except OSError as error:
        raise CheckpointError(f"{index} can't be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{index} is damaged: {message_of(error)}") from error
    return [index.with_name(name) for name in sorted(set(names.values()))]


def _is_shard_name(name: Any) -> bool:
    return isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name
