"""Safetensors files read by the format's own rules, none of them taken on trust.

They are read, not mapped: a mapped file that another process cuts short ends this one with a signal, however much
later. Header and tensors of one opening belong together, also while another process puts a new file in the place.
"""

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from aecli.errors import message_of
from aecli.storage.strict_json import MAX_JSON_BYTES, file_size, is_count, parse_json, regular_file, short_repr

# The format knows more, of which no weights here can be made.
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_LENGTH_BYTES = 8  # a little-endian number at the file's beginning: the header's length
_MOST_SIDES = 16  # axes of a tensor


@dataclass(frozen=True)
class TensorEntry:
    """What a header says of a tensor: where it begins in the file, and how many bytes it takes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class TensorFile:
    """An open safetensors file whose header is whole: entries by name, and the words that it says of itself."""

    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    file: BinaryIO

    def read(self, name: str) -> Tensor:
        """Return a tensor in memory of its own; nothing else of the file is read.

        Raises:
            OSError, ValueError: the file can't be read, or was cut short since it was opened.
            MemoryError: there is less memory than the file is large.
        """
        entry = self.entries[name]
        try:
            raw = torch.empty(entry.size, dtype=torch.uint8)
        except RuntimeError as error:
            raise MemoryError(message_of(error)) from error
        self.file.seek(entry.start)
        if self.file.readinto(raw.numpy()) != entry.size:  # type: ignore[attr-defined]
            raise ValueError("it was cut short while it was read")
        if entry.dtype is torch.bool and bool((raw > 1).any()):
            raise ValueError(f"{short_repr(name)} holds what is neither true nor false")
        if sys.byteorder == "big":
            raw = raw.view(-1, entry.dtype.itemsize).flip(1).flatten()
        return raw.view(entry.dtype).reshape(entry.shape)

    def read_all(self) -> dict[str, Tensor]:
        """Return every tensor by name, as `read` does."""
        return {name: self.read(name) for name in self.entries}


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Open a safetensors file.

    Raises:
        OSError: it can't be read, or is no regular file.
        ValueError: it is not a whole safetensors file.
    """
    with regular_file(path) as file:
        size = file_size(file)
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        start = _LENGTH_BYTES + length
        if size < _LENGTH_BYTES or start > size:
            raise ValueError("it ends within its header")
        if length > MAX_JSON_BYTES:
            raise ValueError(f"its header of {length} bytes is longer than the format allows")
        header = parse_json(file.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata are no words")
        entries = {name: _entry(name, said, start) for name, said in header.items()}
        _require_no_gaps(entries, start, size)
        yield TensorFile(entries, metadata, file)


def _entry(name: str, said: Any, data_start: int) -> TensorEntry:
    """What the header says of one tensor, if that makes sense in itself."""
    try:
        dtype, shape, (begin, end) = said["dtype"], said["shape"], said["data_offsets"]
        is_plain = len(said) == 3 and isinstance(dtype, str) and isinstance(shape, list) and len(shape) <= _MOST_SIDES
        if not is_plain or not all(map(is_count, (*shape, begin, end))):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"what its header says of {short_repr(name)} makes no sense") from None
    if dtype not in _DTYPES:
        raise ValueError(f"{short_repr(name)} is of type {short_repr(dtype)}, which serves for no weights")
    if math.prod(side or 1 for side in shape) >= 2**63 // 8:
        raise ValueError(f"{short_repr(name)} would be of a size beyond all memory")
    if math.prod(shape) * _DTYPES[dtype].itemsize != end - begin:
        raise ValueError(f"{short_repr(name)} takes {end - begin} bytes, which its shape and type don't")
    return TensorEntry(_DTYPES[dtype], tuple(shape), data_start + begin, end - begin)


def _require_no_gaps(entries: Mapping[str, TensorEntry], start: int, size: int) -> None:
    """The tensors lie end to end from the header to the file's end."""
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.size)):
        if entry.start != start:
            raise ValueError("its tensors overlap, or leave gaps")
        start += entry.size
    if start != size:
        raise ValueError(f"its tensors should end at {start} bytes, and it has {size}")
