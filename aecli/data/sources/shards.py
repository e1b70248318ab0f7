"""Sources in shards, read sequentially: tar files, Parquet, datasets of the Hugging Face hub.

Hugging Face's `datasets` opens and reads them, local or remote; images stay encoded, for our own bounded decoder.
"""

import glob
import hashlib
import logging
import math
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

from aecli.data.image_ref import FILE_LIMIT, ImageRef
from aecli.data.sources.selection import SUFFIXES
from aecli.data.sources.tars import list_tars
from aecli.errors import DataError, message_of, single_line
from aecli.storage.fingerprints import fingerprint_of

_KINDS = {".tar": "webdataset", ".parquet": "parquet"}
_SUFFIXES = tuple(suffix.removeprefix(".") for suffix in SUFFIXES)
_COLUMNS = ("image", "img", *_SUFFIXES)  # preferred in this order where a table has several
_MAX_SHARDS = 1_000_000
LIST_LIMIT = 2 * 10**9  # bytes of encoded images that are listed, and so held in memory


@dataclass(frozen=True)
class Encoded:
    """An image as its shard holds it: `content` is a whole image file, `name` is SHARD#KEY or SHARD#ROW."""

    name: str
    content: bytes


def is_stream(source: str) -> bool:
    """Whether a SOURCE is in shards: `hf:NAME`, or tar or Parquet files by path, glob pattern or URL."""
    if source.startswith("hf:"):
        return True
    return os.path.splitext(source.partition("?")[0])[1].lower() in _KINDS and not os.path.isdir(source)


def is_pattern(source: str) -> bool:
    """Whether a SOURCE is local shard files."""
    return is_stream(source) and not source.startswith("hf:") and "://" not in source


class Shards:
    """The shards of a source: `names` in order; `fingerprint`, 64 hex digits that change with the names or sizes."""

    def __init__(self, source: str) -> None:
        """Open the source, count its shards, and check that the first one can be read.

        Raises:
            DataError: it can't be found or opened, holds no images, or the extra `hf` is not installed.
        """
        self.source = source
        library = _library()
        files = () if source.startswith("hf:") else _files(source)
        arguments = _load_arguments(source, files, library)
        with _as_data_error(source):
            dataset = library.load_dataset(**arguments, streaming=True)
        for name, feature in (dataset.features or {}).items():
            if isinstance(feature, library.Image) and feature.decode:
                with _as_data_error(source):
                    dataset = dataset.cast_column(name, library.Image(decode=False))
        with _as_data_error(source):
            count = dataset.num_shards
        self._dataset = dataset
        self._columns = _image_columns(source, dataset.features or {})
        self.names = files if len(files) == count else tuple(f"{source}#{number}" for number in range(count))
        self.fingerprint = fingerprint_of(_names_and_sizes(self.names))
        next(self.read(0), None)

    def read(self, shard: int, start: int = 0) -> Iterator[tuple[int, Encoded]]:
        """Yield the images of one shard, each with its row, from row `start` on; rows without an image are skipped.

        Raises:
            DataError: the shard can't be read.
        """
        for row, values in enumerate(self._rows(shard, start), start):
            contents = (_content(values.get(column)) for column in self._columns)
            content = next((content for content in contents if content is not None), None)
            if content is not None:
                yield row, Encoded(f"{self.names[shard]}#{values.get('__key__') or row}", content)

    def _rows(self, shard: int, start: int) -> Iterator[dict[str, Any]]:
        with _as_data_error(self.names[shard]):
            rows = self._dataset.shard(num_shards=len(self.names), index=shard)
            yield from rows.skip(start) if start else rows


def _names_and_sizes(files: Iterable[str]) -> Iterator[tuple[str, str]]:
    for file in files:
        yield os.path.basename(file), str(os.path.getsize(file)) if os.path.isfile(file) else ""


def shard_sizes(source: str) -> dict[str, str]:
    """Return the names and sizes in bytes of local shards, which are not opened; raises DataError if there are none."""
    return dict(_names_and_sizes(_files(source)))


def list_shards(source: str, is_wanted: Callable[[str], bool]) -> list[ImageRef]:
    """List the images of a source in shards, for commands that need all of them at once.

    Local tar files are indexed; other shards are read into memory.

    Raises:
        DataError: it can't be read, or takes more than `LIST_LIMIT`.
    """
    if is_pattern(source) and source.lower().endswith(".tar"):
        return list_tars(_files(source), is_wanted)
    shards = Shards(source)
    images: list[ImageRef] = []
    total = 0
    for shard in range(len(shards.names)):
        for _, encoded in shards.read(shard):
            total += len(encoded.content)
            if total > LIST_LIMIT:
                raise DataError(
                    f"{source}: more than {LIST_LIMIT / 1e9:g} GB of images can be trained on, but not listed\n"
                    "hint: name fewer shards, or local tar files"
                )
            name = f"{len(images):08d}{_suffix(encoded.content)}"
            digest = hashlib.sha256(encoded.content).hexdigest()
            images.append(ImageRef(name, name, f"{len(encoded.content)}:{digest}", partial(bytes, encoded.content)))
    return images


def _suffix(content: bytes) -> str:
    starts = {b"\x89PNG": ".png", b"\xff\xd8": ".jpg", b"RIFF": ".webp", b"BM": ".bmp", b"II": ".tif", b"MM": ".tif"}
    return next((suffix for start, suffix in starts.items() if content.startswith(start)), ".png")


def _load_arguments(source: str, files: tuple[str, ...], library: Any) -> dict[str, Any]:
    """The arguments of `datasets.load_dataset` but `streaming`."""
    if source.startswith("hf:"):
        name, _, split = source.removeprefix("hf:").partition(":")
        if not name:
            raise DataError(f"{source}: no dataset is named\nhint: hf:NAME or hf:NAME:SPLIT")
        return {"path": name, "split": split or "train"}
    kind = _KINDS[os.path.splitext(source.partition("?")[0])[1].lower()]
    data_files = [file if "://" in file else os.path.abspath(file) for file in files]
    arguments: dict[str, Any] = {"path": kind, "data_files": data_files, "split": "train"}
    if kind == "webdataset":  # which would take the columns of its first rows for those of all
        columns = {suffix: library.Image(decode=False) for suffix in _SUFFIXES}
        keys = {"__key__": library.Value("string"), "__url__": library.Value("string")}
        arguments["features"] = library.Features({**columns, **keys})
    return arguments


def _library() -> Any:
    """The package `datasets`, without its output to the terminal and its progress bars' monitor thread."""
    try:
        import datasets
    except ImportError as error:
        raise DataError('sources in shards need the package datasets\nhint: pip install "aecli[hf]"') from error
    import tqdm

    tqdm.tqdm.monitor_interval = 0
    datasets.disable_progress_bars()
    for name in ("datasets", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return datasets


def _files(source: str) -> tuple[str, ...]:
    """The files that match a path, a glob pattern or a URL with `{000..099}`."""
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
        if not 0 < len(numbers) <= _MAX_SHARDS:
            raise DataError(f"{pattern}: {{{first}..{last}}} is not a range of shards")
        choices += [[f"{number:0{len(first)}d}" for number in numbers], [rest]]
    if math.prod(map(len, choices)) > _MAX_SHARDS:
        raise DataError(f"{pattern}: more than {_MAX_SHARDS} shards")
    return tuple("".join(each) for each in product(*choices))


def _image_columns(source: str, features: dict[str, Any]) -> tuple[str, ...]:
    """The columns that may hold a row's image: all suffixes of a tar, a single column of other tables."""
    if "__key__" in features:
        return _SUFFIXES
    candidates = (
        [name for name, feature in features.items() if type(feature).__name__ == "Image"]
        or [name for name, feature in features.items() if isinstance(feature, dict) and "bytes" in feature]
        or [name for name, feature in features.items() if getattr(feature, "dtype", "") == "binary"]
    )
    if len(candidates) > 1:
        candidates = [name for name in _COLUMNS if name in candidates][:1] or candidates
    if len(candidates) == 1:
        return (candidates[0],)
    names = ", ".join(map(single_line, candidates or features))
    problem = f"several columns may hold the images ({names})" if candidates else f"no column of images ({names})"
    raise DataError(f"{source}: {problem}\nhint: call the column `image`")


def _content(value: Any) -> bytes | None:
    """The bytes of an image file in an undecoded column's value; None where it holds none."""
    content = value.get("bytes") if isinstance(value, dict) else value
    return content if isinstance(content, bytes) and 0 < len(content) <= FILE_LIMIT else None


@contextmanager
def _as_data_error(name: str) -> Iterator[None]:
    """Turn what `datasets` raises for a shard that can't be read into a DataError that names it."""
    import pyarrow
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (OSError, ImportError, ValueError, LookupError, EOFError, RuntimeError, tarfile.TarError,
            pyarrow.ArrowException, DatasetsError) as error:  # fmt: skip
        raise DataError(f"{single_line(name)} can't be read: {message_of(error)}") from error
