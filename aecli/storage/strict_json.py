"""Readers for files of unknown origin: regular files only, strict JSON of bounded size, printable excerpts.

Every failure is an OSError or a ValueError of one line; the caller adds the file's name.
"""

import errno
import json
import math
import os
import reprlib
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

MAX_JSON_BYTES = 100_000_000  # bytes; the safetensors format's own limit of a header
# Bounds the memory that a text may grow to: an empty list takes 3 characters, and 56 bytes as a Python object.
MAX_JSON_VALUES = 2**22
MAX_JSON_DEPTH = 16

SCHEMA = 1  # version of the JSON documents that aecli writes


@contextmanager
def regular_file(path: Path | str) -> Iterator[BinaryIO]:
    """Open a regular file for reading; OSError for anything else, without waiting for the writer of a pipe."""
    with open(path, "rb", opener=lambda path, flags: os.open(path, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        yield file


def file_size(file: BinaryIO) -> int:
    """Size of an open file in bytes."""
    return os.fstat(file.fileno()).st_size


def read_json(path: Path) -> Any:
    """Return the JSON value of a file, as `parse_json` does; raises OSError too."""
    with regular_file(path) as file:
        size = file_size(file)
        if size > MAX_JSON_BYTES:
            raise ValueError(f"{size} bytes: larger than the limit of {MAX_JSON_BYTES}")
        return parse_json(file.read(size))


def parse_json(content: bytes | str) -> Any:
    """Return JSON as Python values.

    Raises:
        ValueError: invalid JSON or UTF-8, a duplicate key, a number that is not finite or an integer of 2^63 or more,
            deeper nesting than `MAX_JSON_DEPTH`, or more values than `MAX_JSON_VALUES`.
    """
    text = content.decode() if isinstance(content, bytes) else content
    if sum(map(text.count, "[{,")) > MAX_JSON_VALUES:
        raise ValueError(f"more than {MAX_JSON_VALUES} values")
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_int=_bounded_int, parse_float=_finite, parse_constant=_finite
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_JSON_DEPTH + 1):
        if not level:
            return value
        nested = (each.values() if isinstance(each, dict) else each for each in level)
        level = [child for values in nested for child in values if isinstance(child, dict | list)]
    raise ValueError("nested too deeply")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"duplicate key {short_repr(repeated)}")
    return unique


def _bounded_int(text: str) -> int:
    value = int(text) if len(text) < 20 else 2**63
    if abs(value) >= 2**63:
        raise ValueError(f"integer too large: {short_repr(text)}")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"not a finite number: {short_repr(text)}")
    return value


def require_known_schema(document: Any) -> dict[str, Any]:
    """Return a JSON document of this aecli's schema version or an older one.

    Raises:
        NewerSchemaError: its schema version is newer.
        ValueError: it is not an object, or has no valid schema version.
    """
    schema = document.get("schema") if isinstance(document, dict) else None
    if type(schema) is not int or schema < 1:
        raise ValueError("no valid schema version")
    if schema > SCHEMA:
        raise NewerSchemaError(f"was written by a newer aecli (schema {schema}, here {SCHEMA})\nhint: update aecli")
    return dict(document)


class NewerSchemaError(ValueError):
    """A document of a newer schema version than this aecli's."""


def is_count(value: object) -> TypeGuard[int]:
    """Whether `value` is an integer of at least 0."""
    return type(value) is int and value >= 0


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a finite number."""
    return type(value) is int or (type(value) is float and math.isfinite(value))


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100


def short_repr(value: object) -> str:
    """Return a short, printable repr of a value read from a file, so that it can't steer a terminal."""
    return _short.repr(value)
