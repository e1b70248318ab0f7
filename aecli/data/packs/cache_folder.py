"""The folder of packs: bounded in size, the least recently used are dropped, one process builds a pack at a time."""

import errno
import json
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aecli.errors import ConfigError
from aecli.storage.locks import Lock

PACK_VERSION = 3  # of the file format and of the decoded pixels
PIXELS, INDEX = "images.u8", "index.json"
BUDGET_VARIABLE, DEFAULT_GIGABYTES = "AECLI_CACHE_GB", 50.0
_BUILDING, _DROPPED, _LOCK = ".building-", ".dropped-", ".lock-"
_KEY = re.compile(r"[0-9a-f]{64}")  # only such folders are packs, and dropped
_LEFTOVER_SECONDS = 24 * 3600


def budget_bytes() -> int:
    """Limit of the size of all packs together: `AECLI_CACHE_GB` gigabytes, or 50.

    Raises:
        ConfigError: the variable is not a number >= 0.
    """
    text = os.environ.get(BUDGET_VARIABLE, "").strip()
    try:
        gigabytes = float(text) if text else DEFAULT_GIGABYTES
    except ValueError:
        gigabytes = math.nan
    if not 0 <= gigabytes < math.inf:
        raise ConfigError(f"{BUDGET_VARIABLE}={text}: not a number of gigabytes\nhint: a number >= 0, such as 50")
    return round(gigabytes * 1e9)


def free_bytes(root: Path) -> float:
    """Free bytes on the disk of `root`; infinite where it reports 0, as some network file systems always do."""
    return shutil.disk_usage(root).free or math.inf


def mark_used(pack: Path) -> None:
    """Record that `pack` is in use now, so that others are dropped before it."""
    try:
        os.utime(pack / INDEX)
    except (PermissionError, FileNotFoundError):
        pass  # another user's cache; or dropped at this moment, and still readable through the memory map
    except OSError as error:
        if error.errno != errno.EROFS:  # nothing is ever dropped from a read-only disk
            raise


def make_room(root: Path, needed: int, budget: int, key: str) -> bool:
    """Drop packs, the least recently used first and never `key`, until `needed` bytes fit; return whether they do.

    Nothing is dropped where that wouldn't suffice; damaged packs and those of older versions always are. On POSIX a
    process that has mapped a dropped pack can still read it; on Windows such a pack can't be dropped, and stays.
    """
    packs = []
    for folder in _packs(root):
        if folder.name == key:
            continue
        used = _last_use(folder)
        if used is None:
            drop(folder)
        else:
            packs.append((used, pixel_bytes(folder), folder))
    held, free = sum(size for _, size, _ in packs), free_bytes(root)
    if needed > min(budget, free + held):
        return False
    for _, size, folder in sorted(packs):
        if held + needed <= budget and needed <= free:
            break
        if drop(folder):
            held, free = held - size, free_bytes(root)
    return held + needed <= budget and needed <= free


def drop(folder: Path) -> bool:
    """Delete a pack, renamed first so that nobody reads half of it; returns False where the system refuses."""
    dropped = folder.with_name(f"{_DROPPED}{uuid.uuid4().hex}")
    try:
        folder.rename(dropped)
    except OSError:
        return not folder.exists()
    shutil.rmtree(dropped, ignore_errors=True)
    return True


def lock_of(pack: Path) -> Lock:
    """The lock that the process that builds `pack` holds."""
    return Lock(pack.with_name(f"{_LOCK}{pack.name}"))


@contextmanager
def building_folder(pack: Path) -> Iterator[Path]:
    """Yield a new folder beside `pack` to build it in; removed at the end unless it was renamed.

    Not `tempfile.mkdtemp`: the other users of a shared cache can't read its folders.
    """
    folder = pack.with_name(f"{_BUILDING}{pack.name}-{uuid.uuid4().hex}")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def bytes_built(pack: Path) -> int:
    """How many bytes of `pack` the process that builds it has written."""
    return max((pixel_bytes(folder) for folder in pack.parent.glob(f"{_BUILDING}{pack.name}-*")), default=0)


def remove_leftovers(pack: Path, held: Lock) -> None:
    """Remove what killed processes left behind; `held` is the lock of `pack`, which the caller holds."""
    root = pack.parent
    for dropped in root.glob(f"{_DROPPED}*"):
        shutil.rmtree(dropped, ignore_errors=True)
    for building in root.glob(f"{_BUILDING}*"):
        name = building.name.removeprefix(_BUILDING).partition("-")[0]
        is_abandoned = held.excludes if name == pack.name else _is_free(lock_of(root / name))
        if is_abandoned or time.time() - _last_change(building) > _LEFTOVER_SECONDS:
            shutil.rmtree(building, ignore_errors=True)


def _is_free(lock: Lock) -> bool:
    """Whether nobody holds `lock`; False also where the file system has no locks."""
    if not lock.take():
        return False
    excluded = lock.excludes
    lock.close()
    return excluded


def _packs(root: Path) -> Iterator[Path]:
    return (folder for folder in root.iterdir() if _KEY.fullmatch(folder.name) and folder.is_dir())


def _last_use(pack: Path) -> float | None:
    """When `pack` was last used, in seconds since 1970; None where it is damaged or of an older version."""
    index = read_index(pack)
    schema = index.get("schema") if index else None
    if not isinstance(schema, int) or schema < PACK_VERSION:
        return None
    try:
        return (pack / INDEX).stat().st_mtime
    except OSError:  # dropped at this moment
        return None


def read_index(pack: Path) -> dict[str, Any] | None:
    """The JSON object in `index.json`; None where it is missing or damaged."""
    try:
        index = json.loads((pack / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return index if isinstance(index, dict) else None


def pixel_bytes(folder: Path) -> int:
    """Size of the pixels' file; 0 where there is none."""
    try:
        return (folder / PIXELS).stat().st_size
    except OSError:
        return 0


def _last_change(folder: Path) -> float:
    """When `folder` or a file in it was last written, in seconds since 1970; now where it has just been removed."""
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    except OSError:
        return time.time()
