"""Safetensors files of unknown origin: a strictly validated header, and tensors read one by one.

They are read, not memory-mapped: truncating a mapped file kills the processes that use it with SIGBUS, and the
safetensors library maps a file that it opens itself. From bytes it makes copies: a file of 201 MB took 394 MB of memory
and 0.48 s, where this takes 199 MB and 0.10 s (an AMD EPYC).
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from aecli.storage.strict_json import MAX_JSON_BYTES, file_size, is_count, parse_json, regular_file, short_repr

# The format has more dtypes, which no weights here have.
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_LENGTH_BYTES = 8  # at the file's start: the header's length, little-endian
_MAX_DIMS = 16


@dataclass(frozen=True)
class TensorFile:
    """An open safetensors file, or all of several: the shapes of the tensors by name, and the metadata of one file."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]
    _dtypes: Mapping[str, torch.dtype]
    _starts: Mapping[str, int]  # in the file, in bytes
    _files: Mapping[str, BinaryIO]

    def read(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Return the tensors of these names, or all, by name, on the CPU.

        Raises:
            OSError, ValueError: the file can't be read, is damaged, or has been cut short since it was opened.
            MemoryError: too little memory.
        """
        return {name: self._read(name) for name in (self.shapes if names is None else names)}

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Return the rows from `start` to before `stop` of a tensor of at least one axis; raises as `read`."""
        return self._read(name, start, stop)

    def _read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        dtype, shape = self._dtypes[name], self.shapes[name]
        offset = 0
        if stop is not None:
            offset = start * math.prod(shape[1:]) * dtype.itemsize
            shape = (stop - start, *shape[1:])
        try:
            content = torch.empty(math.prod(shape) * dtype.itemsize, dtype=torch.uint8)
        except RuntimeError as error:  # PyTorch's allocator
            raise MemoryError(str(error)) from error
        file = self._files[name]
        file.seek(self._starts[name] + offset)
        if file.readinto(content.numpy()) != len(content):  # type: ignore[attr-defined]
            raise ValueError("it changed while it was read")
        if dtype is torch.bool and bool((content > 1).any()):
            raise ValueError(f"{short_repr(name)}: a boolean other than 0 and 1")
        return content.view(dtype).view(shape)


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Open a safetensors file and read its header; the tensors are read from the same opening, and only when asked for.

    Raises:
        OSError: it can't be read, or is not a regular file.
        ValueError: the header is damaged, the file longer or shorter than it says, or a dtype or shape unsupported.
    """
    with regular_file(path) as file:
        size = file_size(file)
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES + length:
            raise ValueError("it ends within its header")
        if length > MAX_JSON_BYTES:
            raise ValueError(f"header of {length} bytes: longer than the format allows")
        text = file.read(length)
        if not text.startswith(b"{"):
            raise ValueError("its header is not a JSON object")
        header = parse_json(text)  # no duplicate keys, bounded memory
        json.dumps(header, ensure_ascii=False).encode()  # ValueError for half of a surrogate pair
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata is not an object of strings")
        shapes = {name: _shape(name, entry) for name, entry in header.items()}
        dtypes = {name: _DTYPES[entry["dtype"]] for name, entry in header.items()}
        sizes = {name: math.prod(shape) * dtypes[name].itemsize for name, shape in shapes.items()}
        start = _LENGTH_BYTES + length
        if size != start + sum(sizes.values()):
            raise ValueError(f"{size} bytes, where its header asks for {start + sum(sizes.values())}")
        yield TensorFile(shapes, metadata, dtypes, _starts(header, sizes, start), dict.fromkeys(header, file))


@contextmanager
def open_shards(paths: Iterable[Path]) -> Iterator[TensorFile]:
    """Open the safetensors files that tensors are spread over as one, without metadata.

    Raises:
        OSError, ValueError: as `open_tensors`, with the file's name, or two files have a tensor of one name.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, torch.dtype] = {}
    starts: dict[str, int] = {}
    files: dict[str, BinaryIO] = {}
    with ExitStack() as stack:
        for path in paths:
            try:
                shard = stack.enter_context(open_tensors(path))
            except ValueError as error:
                raise ValueError(f"{path.name}: {error}") from error
            if twice := shapes.keys() & shard.shapes.keys():
                raise ValueError(f"{path.name}: {short_repr(min(twice))} is in another file too")
            shapes |= shard.shapes
            dtypes |= shard._dtypes
            starts |= shard._starts
            files |= shard._files
        yield TensorFile(shapes, {}, dtypes, starts, files)


def _starts(header: Mapping[str, Any], sizes: Mapping[str, int], start: int) -> dict[str, int]:
    """Return where each tensor begins, `start` being the end of the header; ValueError for gaps and overlaps."""
    spans = [(entry.get("data_offsets"), name) for name, entry in header.items()]
    for span, name in spans:
        if not isinstance(span, list) or len(span) != 2 or not all(map(is_count, span)):
            raise ValueError(f"{short_repr(name)}: invalid offsets {short_repr(span)}")
    starts, end = {}, 0
    for span, name in sorted(spans):
        if span != [end, end + sizes[name]]:
            raise ValueError(f"{short_repr(name)}: invalid offsets {short_repr(span)}")
        starts[name], end = start + end, span[1]
    return starts


def _shape(name: str, entry: Any) -> tuple[int, ...]:
    """Return a tensor's shape, whose dtype is then one of `_DTYPES`.

    Raises:
        ValueError: an unsupported dtype, more axes than `_MAX_DIMS`, or a size that overflows 64 bits.
    """
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape = entry.get("dtype"), entry.get("shape")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMS or not all(map(is_count, shape)):
        raise ValueError(f"{short_repr(name)}: invalid shape {short_repr(shape)}")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"{short_repr(name)}: unsupported dtype {short_repr(dtype)}")
    if math.prod(side or 1 for side in shape) >= 2**63 // 8:
        raise ValueError(f"{short_repr(name)}: shape {short_repr(shape)} is too large")
    return tuple(shape)
