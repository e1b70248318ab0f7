"""Tensors and one JSON document ↔ a safetensors file, written atomically. Nothing here can execute what it reads."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from aecli.configs import FITS, LARGEST_SIDE
from aecli.errors import AecliError, CheckpointError, message_of
from aecli.models import registry
from aecli.models.base import Trainable
from aecli.models.renamed_keys import current_key
from aecli.storage.atomic_files import atomic_path, sha256_of
from aecli.storage.safetensors_file import TensorFile, open_tensors
from aecli.storage.strict_json import SCHEMA, NewerSchemaError, parse_json, require_known_schema, short_repr

# What a model raises of options that its own checks let pass: sizes that make no layers, or no memory.
_UNBUILDABLE = (AecliError, TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AssertionError,
                MemoryError)  # fmt: skip


def save(path: Path, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
    """Write `tensors` and `document` to `path`: the old file or the new one is there, whole, whatever happens.

    Raises:
        OutputError: the place can't be written.
    """
    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    text = json.dumps({"schema": SCHEMA, **document}, allow_nan=False)
    with atomic_path(path) as new:
        new.touch()
        mode = new.stat().st_mode  # as for any file: the format's writer leaves one that its owner alone can read
        try:
            save_file(plain, new, metadata={"format": "pt", "aecli": text})
        except SafetensorError as error:  # what the format's writer makes of a full disk
            raise OSError(str(error)) from error
        new.chmod(mode)


def read_document(path: Path) -> dict[str, Any] | None:
    """Return the JSON document of a checkpoint, or None where the file is aecli's in nothing but its suffix.

    Raises:
        CheckpointError: no such file, not a whole safetensors file, or written by a newer aecli.
    """
    with _opened(path) as file:
        return _document(path, file)


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of a checkpoint file; raises CheckpointError where it can't be read."""
    try:
        return sha256_of(path)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from error


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors (on the CPU) and the document of a checkpoint that aecli wrote.

    Raises:
        CheckpointError: as `read_document`, or without a document.
    """
    with _opened(path) as file:
        document = _document(path, file)
        if document is None:
            raise CheckpointError(f"{path} is a safetensors file, but not one that aecli wrote")
        return {current_key(document.get("model"), key): value for key, value in file.read_all().items()}, document


def load_model(path: Path, named: str | None = None) -> tuple[Trainable, dict[str, Any]]:
    """Return the model of a checkpoint, with its weights, on the CPU and in `eval()` mode, and the document.

    A file without aecli's document is taken for a `state_dict` of the report's architecture; its shapes tell which.
    `named` is the model as the user named it: a `package.module:Class` is imported only on the user's word, never on
    the file's. Nothing of the weights is read before their names and shapes are found to fit.

    Raises:
        CheckpointError: a damaged file, another model than `named`, or weights that don't fit the model that it names.
    """
    with _opened(path) as file:
        document = _document(path, file)
        if document is None:
            document = _report_document(path, file)
        elif "clock" in document:
            raise CheckpointError(
                f"{path} is a state to continue from; the weights are in {path.with_name('model.safetensors')}"
            )
        name, options, model = _build(path, document, named)
        stored = {current_key(name, key): key for key in file.entries}
        _require_fit(path, name, model, {key: file.entries[there].shape for key, there in stored.items()})
        _require_sense(path, document, model)
        tensors = {key: _as_number(path, key, file.read(stored[key]), like) for key, like in model.state_dict().items()}
    saved = model.state_dict().keys()
    if any(buffer.is_meta and key not in saved for key, buffer in model.named_buffers()):
        model = registry.build(name, options)  # buffers that are not saved have to be computed
    model.load_state_dict(tensors, assign=True)
    _require_variances(path, model)
    return model.eval(), document


@contextmanager
def _opened(path: Path) -> Iterator[TensorFile]:
    try:
        with open_tensors(path) as file:
            yield file
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except MemoryError as error:
        raise CheckpointError(f"{path}: there is too little memory for what it holds") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else message_of(error)
        raise CheckpointError(f"{path} is not a whole safetensors file: {reason}") from error


def _document(path: Path, file: TensorFile) -> dict[str, Any] | None:
    text = file.metadata.get("aecli")
    if text is None:
        return None
    try:
        return require_known_schema(parse_json(text))
    except NewerSchemaError as error:
        raise CheckpointError(f"{path} {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: its metadata is damaged: {message_of(error)}") from error


def _build(path: Path, document: Mapping[str, Any], named: str | None) -> tuple[str, Any, Trainable]:
    """Return the model's name, its options, and the model without memory for its weights."""
    name, given = document.get("model"), document.get("options")
    if not isinstance(name, str) or not isinstance(given, dict):
        raise CheckpointError(f"{path}: its metadata is damaged: it says no model, or no options of it")
    if named is not None and named != name:
        raise CheckpointError(f"{path} holds a model {short_repr(name)}, not {named}")
    if ":" in name and named is None:
        words = short_repr(name)[1:-1]
        raise CheckpointError(
            f"{path} needs the class {words}; if you trust that code, name it: --model {words}={path}"
        )
    try:
        options = registry.resolve_options(name, given)
        with torch.device("meta"):
            return name, options, registry.build(name, options)
    except _UNBUILDABLE as error:
        raise CheckpointError(f"{path}: its model {short_repr(name)} can't be built: {message_of(error)}") from error


def _require_fit(path: Path, name: str, model: Trainable, found: Mapping[str, tuple[int, ...]]) -> None:
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if expected != found:
        wrong = next(key for key in (*expected, *found) if expected.get(key) != found.get(key))
        key = wrong if wrong in expected else short_repr(wrong)
        raise CheckpointError(f"{path} does not fit model {short_repr(name)}: {key} is {_shape(found.get(wrong))} "
                              f"in the file, {_shape(expected.get(wrong))} in the model")  # fmt: skip


def _require_sense(path: Path, document: Mapping[str, Any], model: Trainable) -> None:
    size, multiple = document.get("image_size"), model.size_multiple
    if type(size) is not int or not 0 < size <= LARGEST_SIDE or size % multiple:
        raise CheckpointError(f"{path}: its image size {short_repr(size)} is none that its model can take")
    if document.get("fit") not in FITS:
        raise CheckpointError(f"{path}: its fit {short_repr(document.get('fit'))} is not one of {', '.join(FITS)}")


def _as_number(path: Path, key: str, value: Tensor, like: Tensor) -> Tensor:
    """Bring weights of another precision to the model's; refuse what are no numbers for it."""
    if value.is_floating_point() != like.is_floating_point():
        raise CheckpointError(f"{path}: {key} is of type {value.dtype}, and its model needs {like.dtype}")
    value = value.to(like.dtype)
    if not value.isfinite().all():
        raise CheckpointError(f"{path}: {key} holds numbers that are not finite; the training that wrote it diverged")
    return value


def _require_variances(path: Path, model: Trainable) -> None:
    for key, layer in model.named_modules():
        variance = getattr(layer, "running_var", None) if isinstance(layer, nn.modules.batchnorm._BatchNorm) else None
        if variance is not None and bool((variance < 0).any()):
            raise CheckpointError(f"{path}: {key}.running_var holds variances below 0, which no training leaves")


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else "×".join(map(str, shape)) or "a scalar"


def _report_document(path: Path, file: TensorFile) -> dict[str, Any]:
    """Tell the report's models apart by their keys, and read width and latent size off the shapes."""
    first, latent = file.entries.get("encoder.0.weight"), file.entries.get("decoder.0.weight")
    if first is None or latent is None or len(first.shape) != 4 or len(latent.shape) != 4:
        raise CheckpointError(f"{path} holds no weights of an aecli model (encoder.0.weight … decoder.15.bias)")
    name = "vae" if "encoder.15.weight" in file.entries else "ae"
    options = {"width": first.shape[0], "latent_dim": latent.shape[0]}
    return {"schema": SCHEMA, "model": name, "options": options, "image_size": 256, "fit": "squash"}
