"""Safetensors files of unknown origin, validated by the safetensors library and by the strict JSON parser.

They are read, not memory-mapped: truncating a mapped file kills the processes that use it with SIGBUS (the library maps
a file that it opens itself, with its `pread` backend too, while it parses the header). The price is memory: reading
takes twice the file's size for a moment, where mapping takes it once.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from aecli.storage.strict_json import MAX_JSON_BYTES, file_size, is_count, parse_json, regular_file, short_repr

# Bytes of a value. The format has more dtypes, which no weights here have.
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_LENGTH_BYTES = 8  # at the file's start: the header's length, little-endian
_MAX_DIMS = 16


@dataclass(frozen=True)
class TensorFile:
    """An open safetensors file: the shapes of its tensors by name, and its metadata."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]
    _file: BinaryIO
    _header: bytes  # the validated beginning of the file
    _size: int  # bytes

    def read(self) -> dict[str, Tensor]:
        """Return the tensors by name, on the CPU.

        Raises:
            OSError, ValueError: the file can't be read, is damaged, or has changed since it was opened.
            MemoryError: too little memory.
        """
        self._file.seek(0)
        try:
            read = load(self._content())
        except SafetensorError as error:
            raise ValueError(str(error).removeprefix("Error while deserializing: ")) from error
        tensors = {}
        for name in self.shapes:
            value = read.pop(name)
            if value.dtype is torch.bool and bool((value.view(torch.uint8) > 1).any()):
                raise ValueError(f"{short_repr(name)}: a boolean other than 0 and 1")
            tensors[name] = value.clone()  # aligned as torch does: the last digits of a sum may depend on it
        return tensors

    def _content(self) -> bytes:
        content = self._file.read(self._size)
        if len(content) != self._size or not content.startswith(self._header):
            raise ValueError("it changed while it was read")
        bytearray(self._size)  # for the tensors: MemoryError here, where the library would panic
        return content


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Open a safetensors file and read its header; the tensors are read from the same opening, and only when asked for.

    Raises:
        OSError: it can't be read, or is not a regular file.
        ValueError: the header is damaged, the file longer or shorter than it says, or a dtype or shape unsupported.
    """
    with regular_file(path) as file:
        size = file_size(file)
        prefix = file.read(_LENGTH_BYTES)
        length = int.from_bytes(prefix, "little")
        if size < _LENGTH_BYTES + length:
            raise ValueError("it ends within its header")
        if length > MAX_JSON_BYTES:
            raise ValueError(f"header of {length} bytes: longer than the format allows")
        text = file.read(length)
        header = parse_json(text)  # stricter than the library: no duplicate keys, bounded memory
        if not isinstance(header, dict):
            raise ValueError("its header is not a JSON object")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata is not an object of strings")
        shapes = {name: _shape(name, entry) for name, entry in header.items()}
        needed = sum(math.prod(shapes[name]) * _ITEM_BYTES[entry["dtype"]] for name, entry in header.items())
        if size != _LENGTH_BYTES + length + needed:
            raise ValueError(f"{size} bytes, where its header asks for {_LENGTH_BYTES + length + needed}")
        yield TensorFile(shapes, metadata, file, prefix + text, size)


def _shape(name: str, entry: Any) -> tuple[int, ...]:
    """Return a tensor's shape, checked for what the library accepts and torch doesn't; offsets are left to the library.

    Raises:
        ValueError: an unsupported dtype, more axes than `_MAX_DIMS`, or a size that overflows 64 bits.
    """
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape = entry.get("dtype"), entry.get("shape")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMS or not all(map(is_count, shape)):
        raise ValueError(f"{short_repr(name)}: invalid shape {short_repr(shape)}")
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise ValueError(f"{short_repr(name)}: unsupported dtype {short_repr(dtype)}")
    if math.prod(side or 1 for side in shape) >= 2**63 // 8:
        raise ValueError(f"{short_repr(name)}: shape {short_repr(shape)} is too large")
    return tuple(shape)
