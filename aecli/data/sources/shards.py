"""Sources in shards: tar files, Parquet, data sets of the Hugging Face hub. They are read one image after the other.

Hugging Face's `datasets` opens and reads them, wherever they lie; images stay encoded, for our own bounded decoder.
"""

import glob
import hashlib
import logging
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

from aecli.data.image_ref import FILE_LIMIT, ImageRef
from aecli.data.sources.tars import list_tars
from aecli.errors import DataError, message_of, single_line

_KINDS = {".tar": "webdataset", ".parquet": "parquet"}
_SUFFIXES = ("png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff")
_COLUMNS = ("image", "img", *_SUFFIXES)  # of several, the first of these
_MOST_SHARDS = 1_000_000
LISTED_BYTES = 2 * 10**9


@dataclass(frozen=True)
class Encoded:
    """An image as its shard holds it: `content` is a whole image file; `name` says where it was."""

    name: str
    content: bytes


def is_stream(source: str) -> bool:
    """Whether a SOURCE comes in shards: `hf:NAME`, or tar or Parquet files, by a path, a pattern or a URL."""
    if source.startswith("hf:"):
        return True
    return os.path.splitext(source.partition("?")[0])[1].lower() in _KINDS and not os.path.isdir(source)


def is_pattern(source: str) -> bool:
    """Whether a SOURCE stands for local shard files."""
    return is_stream(source) and not source.startswith("hf:") and "://" not in source


class Shards:
    """The shards of a source; `names` in their order, `fingerprint` 64 hex digits that change with names or sizes."""

    def __init__(self, source: str) -> None:
        """Open the source, so that its shards are known, and see whether the first one can be read.

        Raises:
            DataError: it can't be found or opened, holds no images, or the extra `hf` is not installed.
        """
        self.source = source
        library = _library()
        with _as_data_error(source):
            self._dataset, files = _open(source, library)
            count = self._dataset.num_shards
            self._columns = _image_columns(source, self._dataset)
        self.names = files if len(files) == count else tuple(f"{source}#{number}" for number in range(count))
        sizes = [os.path.getsize(name) if os.path.isfile(name) else "" for name in self.names]
        told = "".join(f"{os.path.basename(name)}\0{size}\n" for name, size in zip(self.names, sizes, strict=True))
        next(self.read(0), None)
        self.fingerprint = hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()

    def read(self, shard: int, start: int = 0) -> Iterator[tuple[int, Encoded]]:
        """Yield the images of one shard, each with its row, from row `start` on; rows without an image are passed over.

        Raises:
            DataError: the shard can't be read.
        """
        with _as_data_error(self.names[shard]):
            rows = self._dataset.shard(num_shards=len(self.names), index=shard)
            for row, values in enumerate(rows.skip(start) if start else rows, start):
                content = next((found for column in self._columns if (found := _content(values.get(column)))), None)
                if content is not None:
                    yield row, Encoded(f"{self.names[shard]}#{values.get('__key__') or row}", content)


def list_shards(source: str, is_wanted: Callable[[str], bool]) -> list[ImageRef]:
    """List the images of a source in shards where all of them are wanted at once.

    Local tar files are indexed; what can't be, is read into memory.

    Raises:
        DataError: it can't be read, or takes more than `LISTED_BYTES`.
    """
    if is_pattern(source) and source.lower().endswith(".tar"):
        return list_tars(_files(source), is_wanted)
    shards = Shards(source)
    images: list[ImageRef] = []
    total = 0
    for shard in range(len(shards.names)):
        for _, encoded in shards.read(shard):
            total += len(encoded.content)
            if total > LISTED_BYTES:
                raise DataError(f"{source}: more than {LISTED_BYTES / 1e9:g} GB of images; it can be trained on, "
                                "but not listed; name a part of it, or local tar files")  # fmt: skip
            name = f"{len(images):08d}{_suffix(encoded.content)}"
            digest = hashlib.sha256(encoded.content).hexdigest()
            images.append(ImageRef(name, name, f"{len(encoded.content)}:{digest}", partial(bytes, encoded.content)))
    return images


def _suffix(content: bytes) -> str:
    starts = {b"\x89PNG": ".png", b"\xff\xd8": ".jpg", b"RIFF": ".webp", b"BM": ".bmp", b"II": ".tif", b"MM": ".tif"}
    return next((suffix for start, suffix in starts.items() if content.startswith(start)), ".png")


def _open(source: str, library: Any) -> tuple[Any, tuple[str, ...]]:
    if source.startswith("hf:"):
        name, _, split = source.removeprefix("hf:").partition(":")
        if not name:
            raise DataError(f"{source}: name a data set, as in hf:NAME or hf:NAME:SPLIT")
        opened = library.load_dataset(name, split=split or "train", streaming=True)
        return _undecoded(library, opened), ()
    kind = _KINDS[os.path.splitext(source.partition("?")[0])[1].lower()]
    files = _files(source)
    features = None
    if kind == "webdataset":  # which would take the columns of its first rows for those of all
        columns = {suffix: library.Image(decode=False) for suffix in _SUFFIXES}
        keys = {"__key__": library.Value("string"), "__url__": library.Value("string")}
        features = library.Features({**columns, **keys})
    data_files = [file if "://" in file else os.path.abspath(file) for file in files]
    opened = library.load_dataset(kind, data_files=data_files, split="train", streaming=True, features=features)
    return _undecoded(library, opened), files


def _library() -> Any:
    """The package `datasets`, kept from writing to the terminal, and from a thread that watches bars."""
    try:
        import datasets
    except ImportError as error:
        raise DataError('streams need one more package: pip install "aecli[hf]"') from error
    import tqdm

    tqdm.tqdm.monitor_interval = 0
    datasets.disable_progress_bars()
    for name in ("datasets", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return datasets


def _undecoded(library: Any, opened: Any) -> Any:
    for column, feature in (opened.features or {}).items():
        if isinstance(feature, library.Image) and feature.decode:
            opened = opened.cast_column(column, library.Image(decode=False))
    return opened


def _files(source: str) -> tuple[str, ...]:
    """The files that a path, a pattern or a URL with `{000..099}` means."""
    if "://" in source:
        return _expanded(source)
    files = tuple(sorted(glob.glob(source, recursive=True))) if not os.path.exists(source) else (source,)
    if not files:
        raise DataError(f"{source}: no such file")
    return files


def _expanded(pattern: str) -> tuple[str, ...]:
    parts = re.split(r"\{(\d+)\.\.(\d+)\}", pattern)
    choices: list[list[str]] = [[parts[0]]]
    for first, last, rest in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        numbers = range(int(first), int(last) + 1)
        if not 0 < len(numbers) <= _MOST_SHARDS:
            raise DataError(f"{pattern}: {{{first}..{last}}} is no range of shards")
        choices += [[f"{number:0{len(first)}d}" for number in numbers], [rest]]
    total = 1
    for each in choices:
        total *= len(each)
    if total > _MOST_SHARDS:
        raise DataError(f"{pattern}: more than {_MOST_SHARDS} shards")
    return tuple("".join(each) for each in product(*choices))


def _image_columns(source: str, opened: Any) -> tuple[str, ...]:
    """The columns that may hold a row's image: all of a tar's suffixes, one of other tables."""
    features = dict(opened.features or {})
    if "__key__" in features:
        return _SUFFIXES
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    found = [name for name, kind in kinds.items() if kind == "Image"]
    found = found or [name for name, feature in features.items() if isinstance(feature, dict) and "bytes" in feature]
    found = found or [name for name, feature in features.items() if getattr(feature, "dtype", "") == "binary"]
    if len(found) > 1:
        found = [name for name in _COLUMNS if name in found][:1] or found
    if len(found) != 1:
        which = (
            f"one of {', '.join(map(single_line, found))}"
            if found
            else f"none of {', '.join(map(single_line, features))}"
        )
        raise DataError(f"{source}: which column holds the images? {which or 'no column'}; call it `image`")
    return (found[0],)


def _content(value: Any) -> bytes | None:
    """The bytes of an image file, as an undecoded column gives them."""
    content = value.get("bytes") if isinstance(value, dict) else value
    return content if isinstance(content, bytes) and 0 < len(content) <= FILE_LIMIT else None


@contextmanager
def _as_data_error(name: str) -> Iterator[None]:
    """Turn what reading a shard may raise into a DataError that names it."""
    import pyarrow
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (OSError, ImportError, ValueError, LookupError, EOFError, RuntimeError, tarfile.TarError,
            pyarrow.ArrowException, DatasetsError) as error:  # fmt: skip
        raise DataError(f"{single_line(name)} can't be read: {message_of(error)}") from error
