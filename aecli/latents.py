"""Latents of many images in one safetensors file, written as they come, in memory for a few of them only."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aecli.data.images import ImageRef
from aecli.errors import OutputError
from aecli.files import atomic_write, claim_file, scratch_folder
from aecli.outputs import require_not_read
from aecli.progress import Listener, Notice
from aecli.runtime.distributed import World

_ALIGNMENT = 8  # bytes; what safetensors asks of a header's length
_CHUNK = 2**22  # bytes that are copied at a time


@dataclass(frozen=True)
class LatentStore:
    """A file of rows, one an image, for each tensor; any process and thread may write any row."""

    path: Path
    scratch: Path
    shape: tuple[int, ...]
    rows: dict[str, int] = field(hash=False)  # an image's key -> its row

    def add(self, key: str, **tensors: NDArray[np.float32] | None) -> None:
        """Take an image's tensors, each of `shape`; those that are None are not kept.

        Raises:
            OutputError: the disk is full.
        """
        for name, values in tensors.items():
            if values is not None:
                content = np.ascontiguousarray(values, dtype="<f4").tobytes()
                try:
                    with open(os.open(self.scratch / name, os.O_CREAT | os.O_WRONLY), "wb", buffering=0) as file:
                        file.seek(self.rows[key] * self._row_bytes)
                        file.write(content)
                except OSError as error:
                    raise OutputError(f"{self.path} can't be written: {error.strerror or error}") from error

    @property
    def _row_bytes(self) -> int:
        return 4 * prod(self.shape)

    def write(self, names: Sequence[str], keys: Sequence[str], document: dict[str, Any], listen: Listener) -> None:
        """Put the rows of `keys`, in this order, into one file; `names` are the images', `document` says the rest.

        Raises:
            OutputError: it can't be written.
        """
        kept = [self.rows[key] for key in keys]
        tensors = [name for name in ("mean", "log_variance") if (self.scratch / name).exists()]
        length = len(kept) * self._row_bytes
        told = [name.encode("utf-8", "backslashreplace").decode() for name in names]
        header: dict[str, Any] = {"__metadata__": {"format": "pt", "aecli": json.dumps({**document, "names": told})}}
        for place, name in enumerate(tensors):
            offsets = [place * length, (place + 1) * length]
            header[name] = {"dtype": "F32", "shape": [len(kept), *self.shape], "data_offsets": offsets}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        if self.path.exists():
            listen(Notice(f"replacing {self.path}"))
        with atomic_write(self.path) as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name in tensors:
                with open(self.scratch / name, "rb") as file:
                    for row in kept:
                        file.seek(row * self._row_bytes)
                        for start in range(0, self._row_bytes, _CHUNK):
                            out.write(file.read(min(_CHUNK, self._row_bytes - start)))


@contextmanager
def latents_under_way(
    path: Path | None, shape: tuple[int, ...], images: Sequence[ImageRef], world: World
) -> Iterator[LatentStore | None]:
    """Yield a store for the latents of `images`, in every process the same one, or None without a path.

    Raises:
        OutputError: it can't be written there, or is one of the images.
    """
    if path is None:
        yield None
        return
    rows = {image.key: row for row, image in enumerate(images)}
    if not world.is_main:
        yield LatentStore(path, Path(world.share(None)), shape, rows)
        return
    claim_file(path, "--latents")
    require_not_read("--latents", [path], images)
    with scratch_folder(path.parent) as scratch:
        world.share(str(scratch))
        yield LatentStore(path, scratch, shape, rows)
