"""Checkpoints: tensors and one JSON document in a safetensors file. Writing is atomic, reading executes no code."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from aecli.configs.checks import COLOURS, LARGEST_SIDE, TRAINING_FITS, is_colour
from aecli.errors import AecliError, CheckpointError, count_of, entering, message_of, single_line, summarize
from aecli.models import external, registry
from aecli.models.base import Trainable
from aecli.models.diffusers_config import DiffusersConfig
from aecli.models.latent_scaling import LatentScaling
from aecli.models.renamed_keys import current_key
from aecli.progress import Listener, Notice, ignore
from aecli.runs import diffusers_folder
from aecli.runs.diffusers_weights import config_beside, weights_of
from aecli.runs.plain_weights import PlainWeights, is_pickle, pickle_error, plain_weights
from aecli.storage.atomic_files import atomic_path, sha256_of
from aecli.storage.safetensors_file import TensorFile, open_shards, open_tensors
from aecli.storage.strict_json import SCHEMA, NewerSchemaError, parse_json, require_known_schema, short_repr

# What a plug-in's constructors may raise for bad options. Those of the built-in models are checked by their `Options`.
_PLUGIN_FAILURES = (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AssertionError, MemoryError)


def save(path: Path, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
    """Write `tensors` and `document` to `path` atomically.

    Raises:
        OutputError: `path` can't be written; its old content is kept.
    """
    on_cpu = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    text = json.dumps({"schema": SCHEMA, **document}, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # the umask's: safetensors makes a file that only its owner can read
        try:
            save_file(on_cpu, temporary, metadata={"format": "pt", "aecli": text})
            _sort_metadata(temporary)
        except SafetensorError as error:  # a full disk
            raise OSError(str(error)) from error
        temporary.chmod(mode)


def _sort_metadata(path: Path) -> None:
    """Give the metadata of a file of our own an order: safetensors' is random, and equal runs are to make equal files.

    A prior, for one, knows its autoencoder by the file's SHA-256.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        metadata = dict(sorted(header.pop("__metadata__").items()))
        text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length, f"{path}: a header longer than safetensors' own"
        file.seek(8)
        file.write(text.ljust(length))


def read_document(path: Path) -> dict[str, Any] | None:
    """Return the JSON document of a checkpoint without reading its tensors, or None where aecli didn't write the file.

    Raises:
        CheckpointError: no such file, a damaged one, or one of a newer aecli.
    """
    with _opened(path) as file:
        return _document(path, file)


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of a checkpoint file in hexadecimal; of several, that of theirs, one a line.

    Raises:
        CheckpointError: it can't be read.
    """
    try:
        if diffusers_folder.is_index(path):
            lines = "".join(f"{sha256_of(shard)}\n" for shard in diffusers_folder.shards(path))
            return hashlib.sha256(lines.encode()).hexdigest()
        return sha256_of(path)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from error


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors (on the CPU) and the document of a checkpoint that aecli wrote.

    Raises:
        CheckpointError: as `read_document`, or there is no document.
    """
    with _opened(path) as file:
        document = _document(path, file)
        if document is None:
            raise CheckpointError(f"{path}: a safetensors file without aecli's metadata")
        with _damage_as_error(path):
            tensors = file.read()
    return {current_key(document.get("model"), key): value for key, value in tensors.items()}, document


def load_model(path: Path, named: str | None = None, listen: Listener = ignore) -> tuple[Trainable, dict[str, Any]]:
    """Return the model of a checkpoint on the CPU, in `eval()` mode, and the document.

    Names and shapes are checked against the model before the tensors are read.

    Args:
        path: a safetensors file, or the index of several. Without aecli's document it is what diffusers' config beside
            it says, or else a `state_dict` of the report's architecture or latent diffusion's; its keys, behind a
            prefix that they have in common, and shapes determine which model and size.
        listen: is told of such a prefix, and of tensors that are left out.
        named: the model as the user named it. A `package.module:Class` in the file alone is never imported.

    Raises:
        CheckpointError: a damaged file, another model than `named`, or weights that don't fit the model.
    """
    with _opened(path) as file:
        plain = _weights_of(path, file)
        document, stored = plain.document, plain.names
        name, model, build = _build(path, plain, named)
        _require_shapes(path, name, model, plain.shapes)
        _require_input(path, document, model)
        with _damage_as_error(path):
            tensors = file.read(stored.values())
    weights = {key: _checked(path, key, tensors[stored[key]], like) for key, like in model.state_dict().items()}
    saved = model.state_dict().keys()
    if any(buffer.is_meta and key not in saved for key, buffer in model.named_buffers()):
        model = build()  # computes the non-persistent buffers
    model.load_state_dict(weights, assign=True)
    _require_variances(path, model)
    if plain.prefix:
        listen(Notice(f"{path}: the prefix {single_line(plain.prefix)} is left off the names of its weights"))
    if plain.left_out:
        listen(Notice(f"{path}: {count_of(plain.left_out, 'tensor')} of other networks left out"))
    return model.eval(), document


def describe_weights(path: Path) -> dict[str, Any]:
    """Return the document of a file of weights; of a plain `state_dict`, what its names and shapes say.

    Raises:
        CheckpointError: as `load_model`, but the tensors are neither read nor compared with the model.
    """
    with _opened(path) as file:
        return _weights_of(path, file).document


def load_weights(path: Path, model: Trainable) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of a file of weights that `model` has too, on the CPU, and the names of the others.

    Raises:
        CheckpointError: a damaged file, a tensor of another shape or kind than the model's, or none of the model's.
    """
    expected = model.state_dict()
    with _opened(path) as file:
        plain = _weights_of(path, file)
        stored = plain.names
        shared = {key: plain.shapes[key] for key in expected if key in stored}
        wrong = {key: _difference(shape, tuple(expected[key].shape)) for key, shape in shared.items()
                 if shape != tuple(expected[key].shape)}  # fmt: skip
        if wrong or not shared:
            what = f"in {count_of(len(wrong), 'weight')}: {summarize(wrong)}" if wrong else "in any name of a weight"
            raise CheckpointError(f"{path} does not fit the model {what}")
        with _damage_as_error(path):
            tensors = file.read(stored[key] for key in shared)
    weights = {key: _checked(path, key, tensors[stored[key]], expected[key]) for key in shared}
    return weights, sorted(stored.keys() - shared.keys())


def _weights_of(path: Path, file: TensorFile) -> PlainWeights:
    """Return the document of weights, or what stands in for it, and their names."""
    document = _document(path, file)
    if document is None:
        config = config_beside(path)
        return plain_weights(path, file.shapes) if config is None else weights_of(path, file.shapes, config)
    if "clock" in document:
        raise CheckpointError(f"{path} is a training state, not a model\nhint: {path.with_name('model.safetensors')}")
    names = {current_key(document.get("model"), key): key for key in file.shapes}
    return PlainWeights(document, names, {key: file.shapes[there] for key, there in names.items()}, prefix="")


def _opened(path: Path) -> AbstractContextManager[TensorFile]:
    opening = open_shards(diffusers_folder.shards(path)) if diffusers_folder.is_index(path) else open_tensors(path)
    return entering(opening, _damage_as_error(path))


@contextmanager
def _damage_as_error(path: Path) -> Iterator[None]:
    """Turn the failures of reading a safetensors file into CheckpointError; nothing else belongs into the block."""
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename or path}: no such file") from error
    except MemoryError as error:
        raise CheckpointError(f"{path}: too little memory to read it") from error
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and is_pickle(path):
            raise pickle_error(path) from error
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
        raise CheckpointError(f"{path}: damaged metadata: {message_of(error)}") from error


def _build(path: Path, plain: PlainWeights, named: str | None) -> tuple[str, Trainable, Callable[[], Trainable]]:
    """Return the model's name, the model on the meta device, and what builds it with memory."""
    name, given = plain.document.get("model"), plain.document.get("options")
    if not isinstance(name, str) or not isinstance(given, dict):
        raise CheckpointError(f"{path}: damaged metadata: invalid fields: model, options")
    if named is not None and named != name:
        raise CheckpointError(f"{path} holds a model {short_repr(name)}, not {named}")
    if ":" in name and named is None:
        quoted = short_repr(name)[1:-1]
        raise CheckpointError(
            f"{path} needs the class {quoted}, which is not imported because a file names it\n"
            f"hint: if you trust that code: --model {quoted}={path}"
        )
    if plain.external is not None:
        built = _build_external(path, plain.external)
        return name, built, lambda: type(built)(built.options)
    try:
        options = registry.resolve_options(name, given)
        return name, registry.build_on_meta(name, options), lambda: registry.build(name, options)
    except AecliError as error:
        raise CheckpointError(f"{path}: its model {short_repr(name)} can't be built: {message_of(error)}") from error
    except _PLUGIN_FAILURES as error:
        if registry.targets().get(name, name).startswith("aecli."):
            raise  # a bug of ours
        raise CheckpointError(f"{path}: its model {short_repr(name)} can't be built: {message_of(error)}") from error


def _build_external(path: Path, config: DiffusersConfig) -> Trainable:
    """Return diffusers' network on the meta device; raises ModelError without diffusers."""
    try:
        return external.build_on_meta(config)
    except _PLUGIN_FAILURES as error:
        raise CheckpointError(
            f"{path}: its {config.class_name} can't be built from its config: {message_of(error)}"
        ) from error


def _require_shapes(path: Path, name: str, model: Trainable, found: Mapping[str, tuple[int, ...]]) -> None:
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    wrong = {
        key: _difference(found.get(key), expected.get(key))
        for key in dict.fromkeys((*expected, *found))
        if found.get(key) != expected.get(key)
    }
    if wrong:
        raise CheckpointError(f"{path} does not fit model {short_repr(name)} in {count_of(len(wrong), 'weight')}: "
                              f"{summarize(wrong)}")  # fmt: skip


def _difference(found: tuple[int, ...] | None, expected: tuple[int, ...] | None) -> str:
    if found is None:
        return "missing"
    return f"{_shape(found)} in the file, {_shape(expected)} in the model" if expected is not None else "left over"


def latent_scaling(path: Path, document: Mapping[str, Any]) -> LatentScaling:
    """Return how a document says that latents are scaled, by default not at all; raises CheckpointError."""
    if "latent_scaling" not in document:
        return LatentScaling()
    try:
        return LatentScaling.from_json(document["latent_scaling"])
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _require_input(path: Path, document: Mapping[str, Any], model: Trainable) -> None:
    size, fit = document.get("image_size"), document.get("fit")
    if type(size) is not int or not 0 < size <= LARGEST_SIDE or size % model.size_multiple:
        raise CheckpointError(f"{path}: invalid image_size {short_repr(size)}")
    background = document.get("background", "white")
    if not is_colour(background):
        raise CheckpointError(f"{path}: invalid background {short_repr(background)}: expected {COLOURS}")
    if fit not in TRAINING_FITS:
        raise CheckpointError(f"{path}: invalid fit {short_repr(fit)}: expected {' or '.join(TRAINING_FITS)}")


def _checked(path: Path, key: str, value: Tensor, like: Tensor) -> Tensor:
    """Return weights in the model's dtype; raises CheckpointError for another kind of dtype or values not finite."""
    if value.is_floating_point() != like.is_floating_point():
        raise CheckpointError(f"{path}: {key} is {value.dtype} in the file, {like.dtype} in the model")
    value = value.to(like.dtype).reshape(like.shape)
    if not value.isfinite().all():
        raise CheckpointError(f"{path}: {key} has values that are not finite: the training that wrote it diverged")
    return value


def _require_variances(path: Path, model: Trainable) -> None:
    for key, layer in model.named_modules():
        variance = getattr(layer, "running_var", None) if isinstance(layer, nn.modules.batchnorm._BatchNorm) else None
        if variance is not None and bool((variance < 0).any()):
            raise CheckpointError(f"{path}: {key}.running_var has negative variances")


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a scalar"
