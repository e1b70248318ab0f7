"""Weights that aecli didn't write: pickles, which it doesn't open, and a plain `state_dict` of the report's models."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from aecli.errors import CheckpointError, count_of, name_examples
from aecli.storage.strict_json import SCHEMA, regular_file

_FIRST = "encoder.0.weight"  # in every model that is known by its keys
_HEAD_BYTES = 256
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


def key_prefix(keys: Iterable[str]) -> str:
    """Return what precedes the names of the report's models in `keys`: `module.`, `model._orig_mod.`, …, or nothing."""
    listed = list(keys)
    if _FIRST in listed:
        return ""
    return next((key.removesuffix(_FIRST) for key in listed if key.endswith(f".{_FIRST}")), "")


def report_document(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the document for a plain `state_dict` of the report's `ae` or `vae`: model by keys, options by shapes.

    Such weights say nothing of their images: those of the report are assumed, and `assumed` is True.

    Raises:
        CheckpointError: they are another model's.
    """
    first, latent = shapes.get(_FIRST), shapes.get("decoder.0.weight")
    if first is None or len(first) != 4:
        raise CheckpointError(
            f"{path} holds no weights of an aecli model: {count_of(len(shapes), 'tensor')} "
            f"({name_examples(list(shapes), len(shapes)) or 'none'})\n"
            f"hint: a model that aecli didn't write is known by the report's names, {_FIRST} … decoder.15.bias"
        )
    name = "vae" if "encoder.15.weight" in shapes else "ae"
    options = {"width": first[0]} | ({"latent_dim": latent[0]} if latent is not None and len(latent) == 4 else {})
    return {"schema": SCHEMA, "model": name, "options": options, "image_size": 256, "fit": "squash", "assumed": True}
