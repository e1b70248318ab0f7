"""Tensors and one JSON document ↔ a safetensors file, written atomically. Nothing here can execute what it reads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aecli.configs import FITS, LARGEST_SIDE
from aecli.errors import AecliError, CheckpointError
from aecli.files import atomic_path
from aecli.models import registry
from aecli.models.base import Autoencoder

SCHEMA = 1


def save(path: Path, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
    """Write `tensors` and `document` to `path`: the old file or the new one is there, whole, whatever happens.

    Raises:
        OutputError: the place can't be written.
    """
    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    text = json.dumps({"schema": SCHEMA, **document}, allow_nan=False)
    with atomic_path(path) as beside:
        beside.touch()
        mode = beside.stat().st_mode  # as for any file: the format's writer leaves one that its owner alone can read
        try:
            save_file(plain, beside, metadata={"format": "pt", "aecli": text})
        except SafetensorError as error:  # what the format's writer makes of a full disk
            raise OSError(str(error)) from error
        beside.chmod(mode)


def read_document(path: Path) -> dict[str, Any] | None:
    """Return the JSON document of a checkpoint, or None where the file is aecli's in nothing but its suffix.

    Raises:
        CheckpointError: no such file, not a whole safetensors file, or written by a newer aecli.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("aecli")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error
    if text is None:
        return None
    try:
        document = json.loads(text)
        newer = document["schema"] > SCHEMA
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: its metadata is damaged: {error}") from error
    if newer:
        raise CheckpointError(
            f"{path} was written by a newer aecli (schema {document['schema']}, here {SCHEMA}); update aecli"
        )
    return dict(document)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors (on the CPU) and the document of a checkpoint that aecli wrote.

    Raises:
        CheckpointError: as `read_document`, or without a document.
    """
    document = read_document(path)
    if document is None:
        raise CheckpointError(f"{path} is a safetensors file, but not one that aecli wrote")
    return _tensors(path), document


def load_model(path: Path, named: str | None = None) -> tuple[Autoencoder, dict[str, Any]]:
    """Return the model of a checkpoint, with its weights, on the CPU and in `eval()` mode, and the document.

    A file without aecli's document is taken for a `state_dict` of the report's architecture; its shapes tell which.
    `named` is the model as the user named it: a `package.module:Class` is imported only on the user's word, never on
    the file's.

    Raises:
        CheckpointError: a damaged file, or weights that don't fit the model that it names.
        ModelError: a model that can't be loaded here.
    """
    document = read_document(path)
    tensors = _tensors(path)
    if document is None:
        document = _report_document(path, tensors)
    elif "clock" in document:
        raise CheckpointError(
            f"{path} is a state to continue from; the weights are in {path.with_name('model.safetensors')}"
        )
    name = str(document.get("model"))
    if ":" in name and name != named:
        raise CheckpointError(f"{path} needs the class {name}; if you trust that code, name it: --model {name}={path}")
    try:
        options = registry.resolve_options(name, document.get("options") or {})
        with torch.device("meta"):  # shapes are compared before a byte is allocated
            model = registry.build(name, options)
    except (AecliError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{path}: its model {name!r} can't be built: {error}") from error
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    if expected != found:
        wrong = next(key for key in (*expected, *found) if expected.get(key) != found.get(key))
        raise CheckpointError(f"{path} does not fit model {name!r}: {wrong} is {_shape(found.get(wrong))} in the file, "
                              f"{_shape(expected.get(wrong))} in the model")  # fmt: skip
    _require_sense(path, document, model)
    tensors = {key: _as_number(path, key, tensors[key], like) for key, like in model.state_dict().items()}
    if any(buffer.is_meta for buffer in model.buffers()) and set(dict(model.named_buffers())) - set(expected):
        model = registry.build(name, options)  # buffers that are not saved have to be computed
    model.load_state_dict(tensors, assign=True)
    return model.eval(), document


def _require_sense(path: Path, document: Mapping[str, Any], model: Autoencoder) -> None:
    size, multiple = document.get("image_size"), model.size_multiple
    if type(size) is not int or not 0 < size <= LARGEST_SIDE or size % multiple:
        raise CheckpointError(f"{path}: its image size {size!r} is none that its model can take")
    if document.get("fit") not in FITS:
        raise CheckpointError(f"{path}: its fit {document.get('fit')!r} is not one of {', '.join(FITS)}")


def _as_number(path: Path, key: str, value: Tensor, like: Tensor) -> Tensor:
    """Bring weights of another precision to the model's; refuse what are no numbers for it."""
    if value.is_floating_point() != like.is_floating_point():
        raise CheckpointError(f"{path}: {key} is of type {value.dtype}, and its model needs {like.dtype}")
    if not value.isfinite().all():
        raise CheckpointError(f"{path}: {key} holds numbers that are not finite; the training that wrote it diverged")
    return value.to(like.dtype)


def _tensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else "×".join(map(str, shape)) or "a scalar"


def _report_document(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Tell the report's models apart by their keys, and read width and latent size off the shapes."""
    first, latent = tensors.get("encoder.0.weight"), tensors.get("decoder.0.weight")
    if first is None or latent is None or first.ndim != 4 or latent.ndim != 4:
        raise CheckpointError(f"{path} holds no weights of an aecli model (encoder.0.weight … decoder.15.bias)")
    name = "vae" if "encoder.15.weight" in tensors else "ae"
    options = {"width": first.shape[0], "latent_dim": latent.shape[0]}
    return {"schema": SCHEMA, "model": name, "options": options, "image_size": 256, "fit": "squash"}
