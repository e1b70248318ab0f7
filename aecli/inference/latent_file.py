"""Latents of many images in one safetensors file, written batch by batch through a scratch folder.

The format is written here, because the safetensors library writes whole tensors only: for 10,000 images with 64 kB of
latents each, memory grows by 8 MB here, and would by the file's 655 MB there.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aecli.data.image_ref import ImageRef, file_paths
from aecli.progress import Listener
from aecli.runtime.distributed import Distributed
from aecli.storage.atomic_files import as_output_error, atomic_write
from aecli.storage.outputs import (
    check_writable_file,
    forbid_overwriting_inputs,
    notify_if_replaced,
    shared_scratch_folder,
)

_ALIGNMENT = 8  # bytes, of a safetensors header
_MEAN, _LOG_VARIANCE = "mean", "log_variance"  # the tensors of the file
_CHUNK = 2**22  # bytes copied at a time


@dataclass(frozen=True)
class LatentStore:
    """Scratch files of one row per image, one file per tensor; any process and thread may write any row."""

    path: Path
    scratch: Path
    shape: tuple[int, ...]
    rows: dict[str, int]  # an image's key -> its row

    def add(self, keys: Sequence[str], mean: NDArray[np.float32], log_variance: NDArray[np.float32] | None) -> None:
        """Write the latents (N, …) of the images of `keys`, and their log variances where the model has a posterior.

        Raises:
            OutputError: a row can't be written.
        """
        for name, values in ((_MEAN, mean), (_LOG_VARIANCE, log_variance)):
            if values is not None:
                with (
                    as_output_error(self.path),
                    open(os.open(self.scratch / name, os.O_CREAT | os.O_WRONLY), "wb", buffering=0) as file,
                ):
                    for key, row in zip(keys, np.ascontiguousarray(values, dtype="<f4"), strict=True):
                        file.seek(self.rows[key] * self._row_bytes)
                        file.write(row.tobytes())

    @property
    def _row_bytes(self) -> int:
        return 4 * prod(self.shape)

    def write(self, images: Sequence[ImageRef], document: dict[str, Any], listen: Listener) -> None:
        """Write the rows of `images`, in this order, to the file, with their names and `document` as metadata.

        Raises:
            OutputError: it can't be written.
        """
        kept = [self.rows[image.key] for image in images]
        tensors = [name for name in (_MEAN, _LOG_VARIANCE) if (self.scratch / name).exists()]
        length = len(kept) * self._row_bytes
        names = [image.name.encode("utf-8", "backslashreplace").decode() for image in images]
        header: dict[str, Any] = {"__metadata__": {"format": "pt", "aecli": json.dumps({**document, "names": names})}}
        for index, name in enumerate(tensors):
            offsets = [index * length, (index + 1) * length]
            header[name] = {"dtype": "F32", "shape": [len(kept), *self.shape], "data_offsets": offsets}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        notify_if_replaced(self.path, listen)
        with atomic_write(self.path) as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name in tensors:
                with open(self.scratch / name, "rb") as file:
                    for row in kept:
                        file.seek(row * self._row_bytes)
                        for start in range(0, self._row_bytes, _CHUNK):
                            out.write(file.read(min(_CHUNK, self._row_bytes - start)))


@contextmanager
def open_latent_store(
    path: Path | None, shape: tuple[int, ...], images: Sequence[ImageRef], distributed: Distributed
) -> Iterator[LatentStore | None]:
    """Yield a store for the latents of `images`, the same one in every process; None without a path.

    Raises:
        OutputError: it can't be written there, or is one of the images.
    """
    if path is None:
        yield None
        return
    if distributed.is_main_process:
        check_writable_file(path, "--latents")
        forbid_overwriting_inputs("--latents", [path], file_paths(images))
    with shared_scratch_folder(path, distributed.is_main_process, distributed.broadcast_object) as scratch:
        yield LatentStore(path, scratch, shape, {image.key: row for row, image in enumerate(images)})
