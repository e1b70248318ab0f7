"""How latents are laid out in a folder: one class for shards of many images, one each for arrays of one image."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from aecli.data.image_ref import ImageRef
from aecli.errors import ModelError, OutputError
from aecli.inference.image_batches import require_distinct_keys
from aecli.inference.latents.folder import Index, LatentFolder
from aecli.inference.latents.labels import Labels
from aecli.inference.latents.row_store import RowStore, RowType, open_row_store
from aecli.inference.latents.statistics import LatentSetStatistics
from aecli.runtime.distributed import Distributed
from aecli.storage.atomic_files import atomic_path, write_bytes
from aecli.storage.strict_json import SCHEMA

LATENTS, CODES, FLIPPED = "latents", "codes", "_flip"  # names of tensors
_DTYPES = {"fp32": np.float32, "fp16": np.float16}
FLIPPED_SUFFIX = ".flip"  # of a .npy file
EDM2_PREFIX = "img-mean-std-"


@dataclass(frozen=True)
class Rows:
    """Latents float32 (N, …) and, where there are any, log variances (N, …) and codes int32 (N, codebooks, h, w)."""

    latents: NDArray[np.float32]
    log_variances: NDArray[np.float32] | None = None
    codes: NDArray[np.int32] | None = None


@dataclass(frozen=True)
class EncodedBatch:
    """Images by their positions in the source, with their latents, and those of them mirrored."""

    positions: Sequence[int]
    images: Sequence[ImageRef]
    rows: Rows
    flipped: Rows | None


@dataclass(frozen=True)
class Encoding:
    """What a folder of latents is made of: all images, their classes, and how their latents are stored."""

    folder: LatentFolder
    index: Index
    images: Sequence[ImageRef]
    labels: Labels | None
    distributed: Distributed

    def stored(self, values: NDArray[np.float32]) -> NDArray[Any]:
        """Return values in the dtype that is stored; raises ModelError where they are beyond its range."""
        with np.errstate(over="ignore"):
            stored = values.astype(_DTYPES[self.index.dtype])
        if not np.isfinite(stored).all():
            raise ModelError("latents are beyond the range of fp16\nhint: --dtype fp32")
        return stored


class PartWriter(ABC):
    """Writes a part: consecutive images of the source."""

    @abstractmethod
    def add(self, batch: EncodedBatch) -> None:
        """Write a batch; any process and thread may. Raises OutputError."""

    def finish(self, readable: Sequence[int], types: Mapping[str, RowType]) -> None:  # noqa: B027
        """Called in the main process when all of it is there: the positions that could be read; raises OutputError.

        `types` are what `row_types` says of one of its batches.
        """

    def row_types(self, batch: EncodedBatch) -> dict[str, RowType]:
        """Return what has to be known of a batch to finish the part."""
        return {}


class Layout(ABC):
    """A format of a folder of latents."""

    is_scaled: ClassVar[bool] = False  # whether latents are stored scaled
    always_flips: ClassVar[bool] = False
    needs_maps: ClassVar[bool] = True  # whether latents must be channels × height × width

    def check(self, images: Sequence[ImageRef], flip: bool) -> None:  # noqa: B027
        """Raise DataError where files of these images would overwrite each other."""

    @abstractmethod
    def part(self, encoding: Encoding, number: int, positions: range) -> Any:
        """Return a context manager of the PartWriter of a part; all processes enter it together."""

    def finish(  # noqa: B027
        self, encoding: Encoding, readable: Sequence[int], statistics: LatentSetStatistics
    ) -> None:
        """Write what its readers want beside the latents, in the main process; raises OutputError."""

    def names(self, encoding: Encoding, readable: Sequence[int]) -> dict[str, str] | None:
        """Return the names of images by file, where the files have other names."""
        return None


# Shards


@dataclass(frozen=True)
class _ShardWriter(PartWriter):
    encoding: Encoding
    store: RowStore
    with_codes: bool
    always_labels: bool

    def add(self, batch: EncodedBatch) -> None:
        self.store.add([image.name for image in batch.images], self._tensors(batch))

    def row_types(self, batch: EncodedBatch) -> dict[str, RowType]:
        return {name: RowType.of(values) for name, values in self._tensors(batch).items()}

    def _tensors(self, batch: EncodedBatch) -> dict[str, NDArray[Any]]:
        found: dict[str, NDArray[Any]] = {}
        for suffix, rows in (("", batch.rows), (FLIPPED, batch.flipped)):
            if rows is not None:
                found[LATENTS + suffix] = self.encoding.stored(rows.latents)
                if self.with_codes and rows.codes is not None:
                    found[CODES + suffix] = rows.codes
        return found

    def finish(self, readable: Sequence[int], types: Mapping[str, RowType]) -> None:
        if not readable:
            return  # no file: an empty one would be a shard to readers
        more = {}
        if self.encoding.labels is not None:
            more["labels"] = self.encoding.labels.numbers[list(readable)]
        elif self.always_labels:
            more["labels"] = np.zeros(len(readable), np.int64)
        names = [self.encoding.images[position].name for position in readable]
        self.store.write(names, types, {"schema": SCHEMA, "model": self.encoding.index.model}, more)


class ShardLayout(Layout):
    """`latents-00000.safetensors`, …: `latents` (N, …), `latents_flip`, `codes`, `codes_flip`, `labels` (N,)."""

    needs_maps = False
    with_codes: ClassVar[bool] = True
    always_labels: ClassVar[bool] = False

    @contextmanager
    def part(self, encoding: Encoding, number: int, positions: range) -> Iterator[PartWriter]:
        """Yield a writer of one shard."""
        path = encoding.folder.path / f"latents-{number:05d}.safetensors"
        names = [encoding.images[position].name for position in positions]
        with open_row_store(path, names, encoding.distributed) as store:
            yield _ShardWriter(encoding, store, self.with_codes, self.always_labels)


class LightningDiTLayout(ShardLayout):
    """Shards of `latents`, `latents_flip` and `labels`, all of which are read; `latents_stats.pt` beside them.

    hustvl/LightningDiT's `ImgLatentDataset`: it normalises by the statistics itself.
    """

    always_flips = True
    needs_maps = True
    with_codes = False
    always_labels = True

    def finish(self, encoding: Encoding, readable: Sequence[int], statistics: LatentSetStatistics) -> None:
        """Write `latents_stats.pt`: `mean` and `std`, float32 (1, C, 1, 1), the one file that must be a pickle."""
        tensors = {"mean": torch.tensor(statistics.mean), "std": torch.tensor(statistics.std)}
        with atomic_path(encoding.folder.path / "latents_stats.pt") as temporary:
            torch.save({name: values.view(1, -1, 1, 1) for name, values in tensors.items()}, temporary)


# Arrays


class _ArrayWriter(PartWriter):
    def __init__(self, layout: "NpyLayout | EDM2Layout", encoding: Encoding) -> None:
        self._layout, self._encoding = layout, encoding

    def add(self, batch: EncodedBatch) -> None:
        for is_flipped, rows in ((False, batch.rows), (True, batch.flipped)):
            if rows is None:
                continue
            stored = self._encoding.stored(self._layout.values(rows))
            for position, values in zip(batch.positions, stored, strict=True):
                name = self._layout.file(self._encoding.images, position, is_flipped)
                content = BytesIO()
                np.save(content, values, allow_pickle=False)
                write_bytes(self._encoding.folder.path / name, content.getvalue())


class NpyLayout(Layout):
    """One `.npy` (C, h, w) an image under the image's own path, scaled; mirrored ones end in `.flip.npy`.

    As mit-han-lab/efficientvit writes them, and, but for the names, fast-DiT.
    """

    is_scaled = True

    def check(self, images: Sequence[ImageRef], flip: bool) -> None:
        """Refuse images that differ only in the suffix."""
        keys = [image.key for image in images]
        require_distinct_keys([*keys, *(key + FLIPPED_SUFFIX for key in keys)] if flip else keys)

    @contextmanager
    def part(self, encoding: Encoding, number: int, positions: range) -> Iterator[PartWriter]:
        """Yield a writer of files."""
        yield _ArrayWriter(self, encoding)

    def values(self, rows: Rows) -> NDArray[np.float32]:
        """Return what is stored of each image."""
        return rows.latents

    def file(self, images: Sequence[ImageRef], position: int, is_flipped: bool) -> str:
        """Return the name of an image's file."""
        return f"{images[position].key}{FLIPPED_SUFFIX if is_flipped else ''}.npy"


class EDM2Layout(Layout):
    """`00000/img-mean-std-00000000.npy` (2C, h, w) an image: mean and standard deviation; `dataset.json` with labels.

    NVlabs/edm2's `ImageFolderDataset`. Numbers are positions in the source; mirrored images have the numbers after all
    others.
    """

    @contextmanager
    def part(self, encoding: Encoding, number: int, positions: range) -> Iterator[PartWriter]:
        """Yield a writer of files."""
        yield _ArrayWriter(self, encoding)

    def values(self, rows: Rows) -> NDArray[np.float32]:
        """Return mean and standard deviation of the posterior, which is 0 where there is none."""
        if rows.log_variances is None:
            return np.concatenate([rows.latents, np.zeros_like(rows.latents)], axis=1)
        return np.concatenate([rows.latents, np.exp(0.5 * rows.log_variances)], axis=1)

    def file(self, images: Sequence[ImageRef], position: int, is_flipped: bool) -> str:
        """Return the name of an image's file."""
        number = f"{position + (len(images) if is_flipped else 0):08d}"
        return f"{number[:5]}/{EDM2_PREFIX}{number}.npy"

    def finish(self, encoding: Encoding, readable: Sequence[int], statistics: LatentSetStatistics) -> None:
        """Write `dataset.json`: the class of each file, or null where there are no classes."""
        labels = None
        if encoding.labels is not None:
            numbers = encoding.labels.numbers.tolist()
            labels = [
                [self.file(encoding.images, position, is_flipped), numbers[position]]
                for is_flipped in ((False, True) if encoding.index.flip else (False,))
                for position in readable
            ]
        encoding.folder.write_json("dataset.json", {"labels": labels}, indent=None)

    def names(self, encoding: Encoding, readable: Sequence[int]) -> dict[str, str]:
        """Return the names of images by file."""
        return {self.file(encoding.images, position, False): encoding.images[position].name for position in readable}


LAYOUTS: Mapping[str, Layout] = {
    "safetensors": ShardLayout(), "npy": NpyLayout(), "edm2": EDM2Layout(), "lightningdit": LightningDiTLayout(),
}  # fmt: skip


def require_maps(layout: Layout, name: str, shape: Sequence[int]) -> None:
    """Raise OutputError where a format needs channels × height × width, and latents have another shape."""
    if layout.needs_maps and len(shape) != 3:
        raise OutputError(
            f"--format {name}: latents of shape {'×'.join(map(str, shape))}, not channels × height × width\n"
            "hint: --format safetensors"
        )
