"""Rows of many images in one safetensors file, written batch by batch through a scratch folder.

The format is written here, because the safetensors library writes whole tensors only: for 10,000 images with 64 kB of
latents each, memory grows by 8 MB here, and would by the file's 655 MB there.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aecli.runtime.distributed import Distributed
from aecli.storage.atomic_files import as_output_error, atomic_write
from aecli.storage.outputs import shared_scratch_folder

_ALIGNMENT = 8  # bytes, of a safetensors header
_CHUNK = 2**22  # bytes copied at a time
_NAMES = {"float32": "F32", "float16": "F16", "int32": "I32", "int64": "I64"}  # the format's, of NumPy's dtypes


@dataclass(frozen=True)
class RowType:
    """What a row of a tensor is."""

    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, values: NDArray[Any]) -> "RowType":
        """Return that of values (N, …)."""
        return cls(values.dtype.name, values.shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes of a row."""
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class RowStore:
    """Scratch files of one row an image, one file a tensor; any process and thread may write any row.

    `path` is that of the file to be, `rows` has the number of each image's row by its name.
    """

    path: Path
    scratch: Path
    rows: Mapping[str, int]

    def add(self, names: Sequence[str], tensors: Mapping[str, NDArray[Any]]) -> None:
        """Write the rows (N, …) of the images of these names, by tensor.

        Raises:
            OutputError: a row can't be written.
        """
        for tensor, values in tensors.items():
            size = RowType.of(values).nbytes
            with (
                as_output_error(self.path),
                open(os.open(self.scratch / tensor, os.O_CREAT | os.O_WRONLY), "wb", buffering=0) as file,
            ):
                for name, row in zip(names, np.ascontiguousarray(values, values.dtype.newbyteorder("<")), strict=True):
                    file.seek(self.rows[name] * size)
                    file.write(row.tobytes())

    def write(
        self,
        names: Sequence[str],
        tensors: Mapping[str, RowType],
        document: Mapping[str, Any],
        more: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        """Write the rows of `names`, in this order, to the file, with the names and `document` as metadata.

        Tensors of which no row was added are left out; those of `more` (N, …) are written as they are.

        Raises:
            OutputError: it can't be written.
        """
        given = {tensor: values.astype(values.dtype.newbyteorder("<")) for tensor, values in (more or {}).items()}
        types = {tensor: kind for tensor, kind in tensors.items() if (self.scratch / tensor).exists()}
        types |= {tensor: RowType.of(values) for tensor, values in given.items()}
        # Large items first, so that each tensor lies where its items are aligned.
        order = sorted(types, key=lambda tensor: (-np.dtype(types[tensor].dtype).itemsize, tensor))
        shown = [name.encode("utf-8", "backslashreplace").decode() for name in names]
        header: dict[str, Any] = {"__metadata__": {"format": "pt", "aecli": json.dumps({**document, "names": shown})}}
        end = 0
        for tensor in order:
            start, end = end, end + len(names) * types[tensor].nbytes
            header[tensor] = {"dtype": _NAMES[types[tensor].dtype], "shape": [len(names), *types[tensor].shape],
                              "data_offsets": [start, end]}  # fmt: skip
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        with atomic_write(self.path) as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for tensor in order:
                if tensor in given:
                    out.write(given[tensor].tobytes())
                else:
                    for part in self._read(tensor, names, types[tensor].nbytes):
                        out.write(part)

    def _read(self, tensor: str, names: Sequence[str], size: int) -> Iterator[bytes]:
        with open(self.scratch / tensor, "rb") as file:
            for name in names:
                file.seek(self.rows[name] * size)
                for start in range(0, size, _CHUNK):
                    yield file.read(min(_CHUNK, size - start))


@contextmanager
def open_row_store(path: Path, names: Sequence[str], distributed: Distributed) -> Iterator[RowStore]:
    """Yield a store for the rows of the images of these names, the same one in every process, to be written to `path`.

    Raises:
        OutputError: there can be no scratch folder beside `path`.
    """
    with shared_scratch_folder(path, distributed.is_main_process, distributed.broadcast_object) as scratch:
        yield RowStore(path, scratch, {name: row for row, name in enumerate(names)})
