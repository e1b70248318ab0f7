"""A folder becomes a list of the images in it and below."""

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from aecli.data.image_ref import FileRef, ImageRef
from aecli.data.sources.selection import RUN_PICTURES, Selection, is_hidden, is_run_folder
from aecli.errors import DataError, single_line

VISIT_LIMIT = 100  # ways to one folder: links that branch and meet again make 2^n of n


def list_folder(source: str, selection: Selection, outputs: Sequence[Path]) -> list[ImageRef]:
    """List the image files below the folder `source`, following links, in no particular order.

    Raises:
        DataError: a folder can't be read, or links lead to it in too many ways.
    """
    images: list[ImageRef] = []
    written = {os.path.realpath(path) for path in outputs}
    # (prefix of the names, path, the real folders above it: a link back to one of them is a loop)
    pending: list[tuple[str, str, frozenset[str]]] = [("", source, frozenset())]
    visits: Counter[str] = Counter()
    while pending:
        prefix, folder, above = pending.pop()
        real = os.path.realpath(folder)
        if real in above:
            continue
        visits[real] += 1
        if visits[real] > VISIT_LIMIT:
            raise DataError(
                f"{single_line(real)}: more than {VISIT_LIMIT} symbolic links lead to it\nhint: remove some of them"
            )
        if above and real in written:
            selection.outputs.append(prefix)
            continue
        entries = list(_entries(folder))
        is_run = is_run_folder(entry.name for entry in entries)
        if is_run and above:
            selection.outputs.append(prefix)
            continue
        for entry in entries:
            if is_run and entry.name in RUN_PICTURES:  # the source itself is a run's folder
                selection.outputs.append(prefix + entry.name)
                continue
            status = _status(entry)
            if status is not None and stat.S_ISDIR(status.st_mode):
                if selection.wants_folder(entry.name):
                    pending.append((f"{prefix}{entry.name}/", entry.path, above | {real}))
            elif (status is None or stat.S_ISREG(status.st_mode)) and not is_hidden(entry.name):
                if selection.wants_name(entry.name, prefix + entry.name):
                    if written and os.path.realpath(entry.path) in written:
                        selection.outputs.append(prefix + entry.name)
                    else:
                        images.append(FileRef(prefix + entry.name, source, status))
    return images


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """Yield what a folder holds; raises DataError where it can't be read."""
    try:
        with os.scandir(folder) as scan:
            yield from scan
    except OSError as error:
        raise DataError(f"{single_line(folder)} can't be read: {error.strerror}") from error


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """The result of `stat`; None for a dangling link, which is listed and then reported as unreadable."""
    try:
        return os.stat(entry.path)  # on Windows, `entry.stat()` knows less
    except OSError:
        return None
