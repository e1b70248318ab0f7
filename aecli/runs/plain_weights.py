"""Weights that aecli didn't write: pickles, which it doesn't open, and a plain `state_dict` of a built-in network."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aecli.errors import CheckpointError, count_of, name_examples
from aecli.models import ldm_keys
from aecli.storage.strict_json import SCHEMA, regular_file

if TYPE_CHECKING:
    from aecli.models.diffusers_config import DiffusersConfig  # imports torch

_FIRST = "encoder.0.weight"  # in each of the report's models
_KNOWN = (_FIRST, ldm_keys.FIRST)  # each in every model of its kind
_HEAD_BYTES = 256
ASSUMED_SIZE = 256  # of images, the report's, where weights don't say it
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # how PyTorch's files begin since 1.6, and pickles of protocol 2 and above


def is_pickle(path: Path) -> bool:
    """Whether a file that is no safetensors file holds a pickle, as `torch.save` writes it; raises OSError."""
    with regular_file(path) as file:
        head: bytes = file.read(_HEAD_BYTES)
    if head.startswith(_ZIP):
        return b".pkl" in head
    # A cut safetensors file may begin so too: with the length of its header, which follows.
    return head.startswith(_PICKLE) and 2 <= int.from_bytes(head[1:2]) <= 5 and head[8:9] != b"{"


def pickle_error(path: Path) -> CheckpointError:
    """Return the error that names a pickle, with two lines of Python that convert it."""
    converted, opened = path.with_suffix(".safetensors"), repr(str(path))
    if converted == path:  # by that suffix torch.load would take it for a safetensors file
        converted, opened = path.with_name(f"{path.stem}-converted.safetensors"), f"open({opened}, 'rb')"
    return CheckpointError(
        f"{path} is a pickle, as torch.save writes it: opening one can run any code, so aecli doesn't\n"
        f"hint: these lines of Python convert it without running any, for --model {converted}:\n"
        f"import torch; from safetensors.torch import save_file; w = torch.load({opened}, 'cpu', "
        "weights_only=True); w = w.get('state_dict', w.get('model', w))\n"
        "save_file({k: v.contiguous().clone() for k, v in w.items() if torch.is_tensor(v)}, "
        f"{str(converted)!r})"
    )


@dataclass(frozen=True)
class PlainWeights:
    """A `state_dict` without aecli's document, for which `document` stands in.

    `names` in the file and `shapes` are by the model's own names; those in the file begin with `prefix`. `left_out`
    counts tensors of other networks. `external` is the config of a network that is none of aecli's.
    """

    document: dict[str, Any]
    names: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    prefix: str
    left_out: int = 0
    external: "DiffusersConfig | None" = None


def plain_weights(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> PlainWeights:
    """Return what the names and shapes of a `state_dict` say: of the report's models, or of latent diffusion's.

    Such weights say nothing of their images: those of the report are assumed, and `assumed` is True.

    Raises:
        CheckpointError: they are another model's.
    """
    prefix = key_prefix(shapes)
    names = {key.removeprefix(prefix): key for key in shapes}
    is_latent_diffusion = ldm_keys.FIRST in names
    if is_latent_diffusion:
        own = [key.removeprefix(prefix) for key in shapes if key.startswith(prefix)]
        names = {current: prefix + key for key, current in ldm_keys.current_keys(own).items()}
    known = {key: ldm_keys.current_shape(key, shapes[there]) for key, there in names.items()}
    found = ldm_keys.options_of(known) if is_latent_diffusion else _report_options(known)
    if found is None:
        raise CheckpointError(
            f"{path} holds no weights of an aecli model: {count_of(len(shapes), 'tensor')} "
            f"({name_examples(list(shapes), len(shapes)) or 'none'})\n"
            f"hint: a model that aecli didn't write is known by its names: the report's, {_FIRST} … decoder.15.bias, "
            f"or diffusers', {ldm_keys.FIRST} …"
        )
    document = {"schema": SCHEMA, "model": found[0], "options": found[1], "image_size": ASSUMED_SIZE, "fit": "squash"}
    return PlainWeights(document | {"assumed": True}, names, known, prefix, len(shapes) - len(names))


def key_prefix(keys: Iterable[str]) -> str:
    """Return what precedes a built-in network's names in `keys`: `module.`, `first_stage_model.`, …, or nothing."""
    listed = list(keys)
    if any(first in listed for first in _KNOWN):
        return ""
    return next((key.removesuffix(first) for key in listed for first in _KNOWN if key.endswith(f".{first}")), "")


def _report_options(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, dict[str, Any]] | None:
    """Return `ae` or `vae` and its options for weights of these shapes; None if they are something else."""
    first, latent = shapes.get(_FIRST, ()), shapes.get("decoder.0.weight", ())
    if len(first) != 4:
        return None
    name = "vae" if "encoder.15.weight" in shapes else "ae"
    return name, {"width": first[0]} | ({"latent_dim": latent[0]} if len(latent) == 4 else {})
