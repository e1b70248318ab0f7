"""Archives and shards made on the spot."""

import io
import tarfile
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow
from pyarrow import parquet

from tests.support.images import encoded, picture


def write_tar(path: Path, members: Mapping[str, bytes] | Sequence[tuple[str, bytes]]) -> Path:
    """A tar file of `members`, names with their contents, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return path


def write_zip(path: Path, members: Sequence[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> Path:
    """A zip of `members`, names that stand twice included."""
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def write_tars(folder: Path, counts: Sequence[int]) -> list[bytes]:
    """Tar files 0.tar, 1.tar, … of so many small pictures each, with captions; returns all pictures' PNG files."""
    pictures = [encoded(picture(24, 32, seed)) for seed in range(sum(counts))]
    rest = list(pictures)
    for number, count in enumerate(counts):
        members = {}
        for place in range(count):
            members |= {f"{place:03d}.png": rest.pop(0), f"{place:03d}.txt": b"a caption"}
        write_tar(folder / f"{number}.tar", members)
    return pictures


def write_parquet(path: Path, contents: Sequence[bytes], column: str = "image", **others: Sequence[object]) -> Path:
    """A Parquet file with a column of images as `datasets` keeps them, and other columns."""
    images = [{"bytes": content, "path": None} for content in contents]
    parquet.write_table(pyarrow.table({column: images, **others}), path, row_group_size=3)
    return path
