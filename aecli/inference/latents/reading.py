"""Latents in files, of whoever wrote them: shards, arrays of one image or of many."""

import os
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aecli.data.sources.archives import check_path
from aecli.errors import DataError, message_of, single_line
from aecli.inference.latents.folder import INDEX, Index, read_index
from aecli.inference.latents.layouts import EDM2_PREFIX, FLIPPED_SUFFIX, LATENTS, LAYOUTS, ShardLayout
from aecli.models.latent_scaling import LatentScaling
from aecli.storage.npy_file import read_npy
from aecli.storage.safetensors_file import TensorFile, open_tensors
from aecli.storage.strict_json import parse_json

_TENSORS = (LATENTS, "mean")  # of a shard; mean: of what `reconstruct --latents` writes
_SHARD, _ARRAY = ".safetensors", ".npy"


@dataclass(frozen=True)
class LatentRows:
    """Some latents, which `read` returns as float32 (N, …), and the names of their pictures, without suffix."""

    names: Sequence[str]
    read: Callable[[], NDArray[np.float32]]

    def __len__(self) -> int:
        """How many."""
        return len(self.names)


@dataclass(frozen=True)
class LatentSet:
    """Latents of one shape.

    `scaling` is what they were scaled by, `LatentScaling()` where they are the model's own, and None where nothing says
    so and the format is one of scaled latents. `sha256` is that of the model's weights, where it is known.
    """

    files: Mapping[Path, Sequence[str]]  # the pictures' names of each file
    shape: tuple[int, ...]
    scaling: LatentScaling | None
    sha256: str | None
    read: Callable[[Path, int, int], NDArray[np.float32]]  # rows of a file

    def batches(self, size: int) -> list[LatentRows]:
        """Return them in batches of at most `size`, of one file or of files of one image each."""
        if all(len(names) == 1 for names in self.files.values()):
            files = list(self.files)
            groups = [files[start : start + size] for start in range(0, len(files), size)]
            return [LatentRows([self.files[file][0] for file in group], partial(self._read_each, group))
                    for group in groups]  # fmt: skip
        return [
            LatentRows(names[start : start + size], partial(self._read, file, start, min(start + size, len(names))))
            for file, names in self.files.items()
            for start in range(0, len(names), size)
        ]

    def _read_each(self, files: Sequence[Path]) -> NDArray[np.float32]:
        return np.concatenate([self._read(file, 0, 1) for file in files])

    def _read(self, file: Path, start: int, stop: int) -> NDArray[np.float32]:
        with _damage_as_error(file):
            rows = self.read(file, start, stop)
        if rows.shape[1:] != self.shape:
            raise DataError(f"{file}: latents of shape {_shape(rows.shape[1:])}, among others of {_shape(self.shape)}")
        if not np.isfinite(rows).all():
            raise DataError(f"{file}: latents that are not finite")
        return rows


def find_latents(path: Path) -> LatentSet:
    """Return the latents of a folder or file: as index.json says, or else by the names of the files.

    Raises:
        DataError: there are none, or they are damaged or of several shapes.
    """
    if not path.exists():
        raise DataError(f"--latents {path}: no such folder or file")
    if not path.is_dir():
        return _find([path], path.parent, None)
    index = read_index(path) if (path / INDEX).exists() else None
    if index is not None and not index.complete:
        raise DataError(f"--latents {path} is not complete\nhint: the same aecli encode goes on with it")
    may_be_shards = index is None or isinstance(LAYOUTS.get(index.format), ShardLayout)
    shards = sorted(path.glob(f"*{_SHARD}")) if may_be_shards else []
    return _find(shards or _arrays(path, index), path, index)


def _arrays(folder: Path, index: Index | None) -> list[Path]:
    """Return the .npy files of a folder and below, without those of mirrored images."""
    found = [Path(at, name) for at, _, names in os.walk(folder, followlinks=True) for name in names
             if name.endswith(_ARRAY)]  # fmt: skip
    if index is not None and index.names is not None:
        found = [file for file in found if file.relative_to(folder).as_posix() in index.names]
    elif index is not None and index.flip:
        found = [file for file in found if not file.name.endswith(f"{FLIPPED_SUFFIX}{_ARRAY}")]
    return sorted(found)


def _find(files: Sequence[Path], folder: Path, index: Index | None) -> LatentSet:
    if not files:
        raise DataError(f"--latents {folder} holds no {_SHARD} or {_ARRAY} files")
    suffix = files[0].suffix
    if suffix not in (_SHARD, _ARRAY):
        raise DataError(f"--latents {files[0]}: neither a folder nor a {_SHARD} or {_ARRAY} file")
    sha256 = None if index is None else index.sha256
    if suffix == _ARRAY:
        return _find_arrays(files, folder, index, sha256)
    names: dict[Path, Sequence[str]] = {}
    shapes: dict[Path, tuple[int, ...]] = {}
    scaling = LatentScaling()
    for file in files:
        with _opened(file) as (opened, tensor, document):
            shapes[file] = opened.shapes[tensor][1:]
            names[file] = _names(file, document.get("names"), opened.shapes[tensor][0], sum(map(len, names.values())))
            if "latent_scaling" in document:
                scaling = LatentScaling.from_json(document["latent_scaling"])
    (first, shape), *others = shapes.items()
    if other := next((file for file, each in others if each != shape), None):
        raise DataError(f"{other}: latents of shape {_shape(shapes[other])}, among others of {_shape(shape)}")
    return LatentSet(names, shape, scaling, sha256, _read_shard)


def _find_arrays(files: Sequence[Path], folder: Path, index: Index | None, sha256: str | None) -> LatentSet:
    with _damage_as_error(files[0]):
        first = read_npy(files[0])
    is_edm2 = files[0].name.startswith(EDM2_PREFIX)
    if first.ndim == 4:  # many in one file
        if len(files) > 1:
            raise DataError(f"{files[0]}: latents of shape {_shape(first.shape)}, where a file a picture was expected\n"
                            "hint: name that file")  # fmt: skip
        names = {files[0]: _names(files[0], None, len(first), 0)}
        return LatentSet(names, first.shape[1:], None, sha256, lambda file, start, stop: read_npy(file)[start:stop])
    known = {} if index is None else index.names or {}
    names = {file: [_key(file, known.get(_relative(file, folder)) or _named(_relative(file, folder)))]
             for file in files}  # fmt: skip
    if is_edm2:
        if first.ndim != 3 or len(first) % 2:
            raise DataError(f"{files[0]}: shape {_shape(first.shape)}, where mean and standard deviation were expected")
        return LatentSet(names, (len(first) // 2, *first.shape[1:]), LatentScaling(), sha256, _read_mean)
    scaling = None if index is None else index.latent_scaling or LatentScaling()
    return LatentSet(names, first.shape, scaling, sha256, lambda file, start, stop: read_npy(file)[None])


def _read_mean(file: Path, start: int, stop: int) -> NDArray[np.float32]:
    values = read_npy(file)
    return values[None, : len(values) // 2]


def _read_shard(file: Path, start: int, stop: int) -> NDArray[np.float32]:
    with open_tensors(file) as opened:
        rows: NDArray[np.float32] = opened.read_rows(_tensor_of(opened), start, stop).float().numpy()
    return rows


@contextmanager
def _opened(file: Path) -> Iterator[tuple[TensorFile, str, dict[str, Any]]]:
    """Yield a shard, the name of its tensor of latents, and aecli's document, which may be empty."""
    with _damage_as_error(file), open_tensors(file) as opened:
        text = opened.metadata.get("aecli")
        document = {} if text is None else parse_json(text)
        if not isinstance(document, dict):
            raise ValueError("damaged metadata")
        yield opened, _tensor_of(opened), document


def _tensor_of(opened: TensorFile) -> str:
    found = next((name for name in _TENSORS if len(opened.shapes.get(name, ())) > 1), None)
    if found is None:
        raise ValueError(f"it holds no tensor {' or '.join(_TENSORS)} of latents")
    return found


def _names(file: Path, names: Any, count: int, before: int) -> list[str]:
    """Return the pictures' names of the rows of a file, by the names of their images, or numbered."""
    if names is None:
        return [f"{before + number:08d}" for number in range(count)]
    if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str) for name in names):
        raise ValueError("damaged metadata: names")
    return [_key(file, name) for name in names]


def _key(file: Path, name: str) -> str:
    """Return an image's name without suffix; raises DataError where it leads out of a folder."""
    check_path(f"{file} holds {single_line(name)}", name)
    try:
        usable = bool(name) and b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise DataError(f"{file} holds a name that no file can have: {single_line(name)!r}")
    return posixpath.splitext(name)[0]


def _named(relative: str) -> str:
    """Return the name of the picture of a file of latents: EDM2's are numbered alike."""
    folder, name = posixpath.split(relative)
    return posixpath.join(folder, name.replace(EDM2_PREFIX, "img", 1) if name.startswith(EDM2_PREFIX) else name)


def _relative(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "a scalar"


@contextmanager
def _damage_as_error(file: Path) -> Iterator[None]:
    """Turn the failures of reading a file into DataError; nothing else belongs into the block."""
    try:
        yield
    except MemoryError as error:
        raise DataError(f"{file}: too little memory to read it") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else message_of(error)
        raise DataError(f"{file} can't be read: {reason}") from error
