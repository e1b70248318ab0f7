"""Reading what a stranger may have written: regular files, strict JSON within bounds, words that steer no terminal.

Every failure is an OSError or a ValueError in one line, for the caller to say which file it was.
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

LARGEST_JSON = 100_000_000  # bytes; the safetensors format's own limit of a header
# What the same text may grow to in memory: an empty list takes three characters, and twenty times as many bytes.
MOST_PARTS = 2**22
MOST_LEVELS = 16

SCHEMA = 1  # of the JSON documents that aecli writes


@contextmanager
def regular_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read. What is none (a folder, a pipe or device, which may never answer) is an OSError."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    with open(path, "rb") as file:
        yield file


def file_size(file: BinaryIO) -> int:
    """Bytes of an open file."""
    return os.fstat(file.fileno()).st_size


def read_json(path: Path) -> Any:
    """Return the JSON that a file holds, as `parse_json` does; no more of it is read than it is long."""
    with regular_file(path) as file:
        size = file_size(file)
        if size > LARGEST_JSON:
            raise ValueError(f"{size} bytes are more than it could need")
        return parse_json(file.read(size))


def parse_json(content: bytes | str) -> Any:
    """Return JSON as Python values: every key once in its object, numbers finite and whole ones below 2^63.

    Raises:
        ValueError: it is no such JSON, is nested deeper than `MOST_LEVELS`, or has more than `MOST_PARTS` parts.
    """
    text = content.decode() if isinstance(content, bytes) else content
    if sum(map(text.count, "[{,")) > MOST_PARTS:
        raise ValueError(f"more than {MOST_PARTS} parts")
    try:
        value = json.loads(
            text, object_pairs_hook=_distinct, parse_int=_whole, parse_float=_finite, parse_constant=_finite
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(MOST_LEVELS + 1):
        if not level:
            return value
        inner = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [part for parts in inner for part in parts if isinstance(part, dict | list)]
    raise ValueError("nested too deeply")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        often = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{short_repr(often)} is there more than once")
    return found


def _whole(text: str) -> int:
    value = int(text) if len(text) < 20 else 2**63
    if abs(value) >= 2**63:
        raise ValueError(f"{short_repr(text)} is too large a number")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{short_repr(text)} is no finite number")
    return value


def require_known_schema(document: Any) -> dict[str, Any]:
    """Return a JSON document of this aecli's schema, or an older one.

    Raises:
        NewerSchemaError: it is a newer one's.
        ValueError: it says nothing of the kind.
    """
    schema = document.get("schema") if isinstance(document, dict) else None
    if type(schema) is not int or schema < 1:
        raise ValueError("it says no schema")
    if schema > SCHEMA:
        raise NewerSchemaError(f"was written by a newer aecli (schema {schema}, here {SCHEMA}); update aecli")
    return dict(document)


class NewerSchemaError(ValueError):
    """A document of a schema that this aecli doesn't know."""


def is_count(value: object) -> TypeGuard[int]:
    """Whether `value` is a whole number, 0 or above."""
    return type(value) is int and value >= 0


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a finite number."""
    return type(value) is int or (type(value) is float and math.isfinite(value))


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100


def short_repr(value: object) -> str:
    """A value out of a file, short and printable whatever it is."""
    return _short.repr(value)
