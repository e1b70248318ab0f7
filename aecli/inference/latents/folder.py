"""A folder of latents: what is in it (index.json), and how far it has got."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from aecli.data.decoding.conversions import ConversionCounts
from aecli.errors import AecliError, DataError, OutputError, message_of
from aecli.inference.latents.statistics import LatentSetStatistics, Moments
from aecli.models.latent_scaling import LatentScaling
from aecli.progress import Listener, Notice
from aecli.runs import checkpoints
from aecli.storage.atomic_files import (
    OWN_PREFIX,
    as_output_error,
    list_names,
    make_folder,
    remove_folder,
    remove_temporary_files,
    write_json,
)
from aecli.storage.locks import Lock
from aecli.storage.schema import Schema, checked, is_bool, is_object, is_text, list_of, map_of, optional, parsed
from aecli.storage.strict_json import SCHEMA, NewerSchemaError, is_count, is_number, read_json, require_known_schema

Document = TypeVar("Document", bound=Schema)

INDEX, STATISTICS = "index.json", "statistics.json"
_UNFINISHED = "unfinished"  # the folder of what is known of the parts that are done
_LOCK = f"{OWN_PREFIX}encode.lock"


def _scaling(value: Any) -> LatentScaling | None:
    return None if value is None else LatentScaling.from_json(value)


@dataclass(frozen=True)
class Index(Schema):
    """index.json. Down to `shard_size` it says what the folder was begun with.

    `data` is the fingerprint of the images' names and sizes, `images` their number. `latent_scaling` is what the stored
    latents were scaled by, null where they are the model's own. `written` images of them are there once it is
    `complete`; `names` are those of images by file, where files have other names.
    """

    format: str = checked(is_text)
    model: str = checked(is_text)
    sha256: str = checked(is_text)
    image_size: int = checked(is_count)
    fit: str = checked(is_text)
    background: str = checked(is_text)
    precision: str = checked(is_text)
    dtype: str = checked(is_text)
    flip: bool = checked(is_bool)
    labels: str = checked(is_text)
    data: str = checked(is_text)
    images: int = checked(is_count)
    shard_size: int = checked(is_count)
    latent_shape: list[int] = checked(list_of(is_count))
    scaling_factor: float | None = checked(optional(is_number), None)
    latent_scaling: LatentScaling | None = parsed(_scaling, None)
    classes: list[str] | None = checked(optional(list_of(is_text)), None)
    complete: bool = checked(is_bool, False)
    written: int = checked(is_count, 0)
    unreadable: dict[str, str] = checked(map_of(is_text), factory=dict)
    conversions: dict[str, Any] = checked(is_object, factory=dict)
    names: dict[str, str] | None = checked(optional(map_of(is_text)), None)

    def to_json(self) -> dict[str, Any]:
        """Return what `from_document` reads."""
        scaling = None if self.latent_scaling is None else self.latent_scaling.to_json()
        return {"schema": SCHEMA, **asdict(self), "latent_scaling": scaling}


# What must be the same for a folder to be gone on with, by the option that it comes from.
_IDENTITY = {
    "format": "--format", "model": "--model", "sha256": "--model", "image_size": "--image-size", "fit": "--fit",
    "background": "--background", "precision": "--precision", "dtype": "--dtype", "flip": "--flip",
    "labels": "--labels", "data": "--data", "shard_size": "--shard-size", "scaling_factor": "--scaling-factor",
}  # fmt: skip


@dataclass(frozen=True)
class PartRecord:
    """What is known of a part that is done: unreadable images (name → reason), what was done to the others, sums.

    `moments` are of the latents, `counts` how often each code occurs (codebooks, codes), or None.
    """

    unreadable: Mapping[str, str]
    conversions: ConversionCounts
    moments: Moments | None
    counts: NDArray[np.int64] | None


class LatentFolder:
    """A folder that latents are written to. Only the main process calls its methods."""

    def __init__(self, path: Path) -> None:
        """Name the files; nothing is made yet."""
        self.path = path
        self._state = path / _UNFINISHED

    @contextmanager
    def opened(self, wanted: Index, listen: Listener) -> Iterator[Index]:
        """Lock the folder and yield its index: the one that it was begun with, or `wanted` in a new one.

        Raises:
            OutputError: another process writes here, there is something else, or latents with other options.
        """
        with as_output_error(self.path):
            if self.path.is_dir() and not (self.path / INDEX).exists() and (held := len(list_names(self.path))):
                raise OutputError(f"--out {self.path} already holds {held} files or folders\nhint: name another folder")
            make_folder(self.path)
            if not os.access(self.path, os.W_OK):
                raise OutputError(f"{self.path} can't be written: permission denied")
            lock = Lock(self.path / _LOCK, by_name=True)
            if not lock.take():
                raise OutputError(f"--out {self.path}: {lock.holder()} is writing there\nhint: name another folder")
        try:
            with as_output_error(self.path):
                remove_temporary_files(self.path, recursive=True, any_owner=lock.excludes)
            yield self._index(wanted, listen)
        finally:
            lock.close()

    def _index(self, wanted: Index, listen: Listener) -> Index:
        if not (self.path / INDEX).exists():
            self.write_index(wanted)
            return wanted
        found = read_index(self.path)
        for key, flag in _IDENTITY.items():
            if getattr(found, key) != getattr(wanted, key):
                raise OutputError(f"--out {self.path} holds latents {_difference(key, flag, found)}\n"
                                  "hint: name another folder, or remove that one")  # fmt: skip
        if found.complete:
            listen(Notice(f"{self.path} is complete"))
            with as_output_error(self._state):
                remove_folder(self._state)  # of a process that ended just before it did
        elif done := len(list(self._state.glob("*.safetensors"))):
            listen(Notice(f"{self.path}: going on after {done} of {-(-found.images // found.shard_size)} parts"))
        return found

    def write_index(self, index: Index) -> None:
        """Write index.json; raises OutputError."""
        self.write_json(INDEX, index.to_json())

    def write_json(self, name: str, document: Mapping[str, Any], indent: int | None = 1) -> None:
        """Write a JSON file of that name; raises OutputError."""
        write_json(self.path / name, document, indent)

    def read_records(self) -> Iterator[tuple[int, PartRecord]]:
        """Yield the numbers and records of the parts that are done; a damaged one counts as not done."""
        for path in sorted(self._state.glob("*.safetensors")):
            try:
                found = int(path.stem), _read_record(path)
            except (AecliError, ValueError, KeyError, TypeError):
                continue
            yield found

    def write_record(self, number: int, record: PartRecord) -> None:
        """Say that a part is done, whose files are there; raises OutputError."""
        tensors: dict[str, torch.Tensor] = {}
        if record.moments is not None:
            tensors["mean"], tensors["squares"] = map(torch.from_numpy, (record.moments.mean, record.moments.squares))
        if record.counts is not None:
            tensors["counts"] = torch.from_numpy(record.counts)
        document = {
            "count": record.moments.count if record.moments else 0, "unreadable": dict(record.unreadable),
            "conversions": record.conversions.to_json(), "images": record.conversions.images,
        }  # fmt: skip
        checkpoints.save(self._state / f"{number:05d}.safetensors", tensors, document)

    def complete(self, index: Index) -> Index:
        """Write the index of the whole folder, and forget the parts; raises OutputError."""
        whole = replace(index, complete=True)
        self.write_index(whole)
        with as_output_error(self._state):
            remove_folder(self._state)
        return whole


def _difference(key: str, flag: str, found: Index) -> str:
    if key in ("model", "sha256"):
        return f"of other weights ({found.model}, SHA-256 {found.sha256[:12]}…)"
    if key == "data":
        return f"of other images ({found.images:,}, with other names or sizes)"
    value = getattr(found, key)
    if key == "flip":
        return f"{'with' if value else 'without'} {flag}"
    return f"without {flag}" if value is None else f"with {flag} {value}"


def _read_record(path: Path) -> PartRecord:
    tensors, document = checkpoints.load(path)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    moments = Moments(document["count"], arrays["mean"], arrays["squares"]) if "mean" in arrays else None
    conversions = ConversionCounts.from_json(document["conversions"], int(document["images"]))
    return PartRecord(dict(document["unreadable"]), conversions, moments, arrays.get("counts"))


def read_index(folder: Path) -> Index:
    """Return the index of a folder; raises DataError where it is damaged or of a newer aecli."""
    return _read(folder / INDEX, Index)


def read_statistics(folder: Path) -> LatentSetStatistics:
    """Return the statistics of a folder; raises DataError likewise."""
    return _read(folder / STATISTICS, LatentSetStatistics)


def _read(path: Path, schema: type[Document]) -> Document:
    try:
        return schema.from_document(require_known_schema(read_json(path)))
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error
    except NewerSchemaError as error:
        raise DataError(f"{path} {error}") from error
    except ValueError as error:
        raise DataError(f"{path} is damaged: {message_of(error)}") from error
