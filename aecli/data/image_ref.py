"""A reference to an image that is not yet read, and the split into training and validation images."""

import hashlib
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from aecli.errors import DataError
from aecli.storage.fingerprints import file_name_bytes, fingerprint_of
from aecli.storage.strict_json import file_size, regular_file

if TYPE_CHECKING:
    from aecli.runtime.distributed import Distributed  # imports torch, which listing images does without

FILE_LIMIT = 2**31  # bytes of an encoded image: what PIXEL_LIMIT pixels take in 16-bit RGBA without compression


class ImageRef:
    """One image of a source, not yet read; equal to another one of the same name, group and fingerprint.

    `name` is its relative path with `/` and suffix, unique in its source. Images of one `group` stay on one side of a
    split. `fingerprint` changes when the content changes; `revision` also changes when a file is replaced on
    this machine by one of the same size and modification time (which a cache must notice, but not the data's identity).
    """

    # There are millions: no dictionary each, and a single string for what is rarely read.
    __slots__ = ("_load", "_versions", "group", "name")

    def __init__(
        self, name: str, group: str, fingerprint: str, load: Callable[[], bytes | Image.Image], revision: str = ""
    ) -> None:
        """`load` returns the encoded bytes or a Pillow image; see `ImageRef.load` for what it may raise."""
        self.name = name
        self.group = group
        self._versions = f"{fingerprint}\0{revision}"
        self._load = load

    @property
    def fingerprint(self) -> str:
        """Text that changes when the content changes."""
        return self._versions.partition("\0")[0]

    @property
    def revision(self) -> str:
        """Text that also changes when a file is replaced by one of the same size and modification time."""
        return self._versions.partition("\0")[2]

    @property
    def encoded_bytes(self) -> int:
        """Size of the encoded image, if its fingerprint begins with it, as those of files do; otherwise 0."""
        text = self._versions.partition(":")[0]
        return int(text) if text.isdecimal() else 0

    @property
    def key(self) -> str:
        """The name without its suffix, by which it is paired with an image of another source."""
        return posixpath.splitext(self.name)[0]

    def load(self) -> bytes | Image.Image:
        """The encoded bytes or a Pillow image; may be called from several threads.

        Raises:
            OSError: it can't be read.
            ImageError: its dataset's own decoder finds it damaged.
        """
        return self._load()

    def renamed(self, name: str) -> "ImageRef":
        """Return the same image under another name, alone in its group if it was so before."""
        group = name if self.group == self.name else self.group
        return ImageRef(name, group, self.fingerprint, self._load, self.revision)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageRef) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r}, group={self.group!r}, fingerprint={self.fingerprint!r})"

    def _identity(self) -> tuple[str, str, str]:
        return self.name, self.group, self.fingerprint


class FileRef(ImageRef):
    """An image file `name` in the folder `root`, alone in its group.

    Its fingerprint is `size:mtime_ns`, its revision `ctime_ns`; "unreadable" for a file that has no `status`.
    """

    __slots__ = ("root",)

    def __init__(self, name: str, root: str, status: os.stat_result | None) -> None:
        """`status` is the result of `stat`; the path is joined only when the file is read."""
        self.name = self.group = name
        self.root = root
        self._versions = f"{status.st_size}:{status.st_mtime_ns}\0{status.st_ctime_ns}" if status else "unreadable\0"

    @property
    def path(self) -> str:
        """Where the file is."""
        return os.path.join(self.root, self.name)

    def renamed(self, name: str) -> ImageRef:
        """Return the same file under another name."""
        return _RenamedFileRef(name, self.path, self._versions)

    def load(self) -> bytes:
        """The file's bytes; raises OSError, also where it is no longer a regular file."""
        with regular_file(self.path) as file:
            size = file_size(file)
            if size > FILE_LIMIT:
                raise OSError(f"{size} bytes are more than {FILE_LIMIT}")
            return file.read(size)


class _RenamedFileRef(FileRef):
    """An image file whose name is not its path below the source."""

    __slots__ = ()

    def __init__(self, name: str, path: str, versions: str) -> None:
        """`root` is the whole path."""
        self.name = self.group = name
        self.root = path
        self._versions = versions

    @property
    def path(self) -> str:
        """Where the file is."""
        return self.root


def file_paths(images: Iterable[ImageRef]) -> Iterator[str]:
    """Yield the paths of those `images` that are files, not members of an archive."""
    return (image.path for image in images if isinstance(image, FileRef))


def content_key(images: Sequence[ImageRef], *settings: object) -> str:
    """SHA-256 of the names, fingerprints and revisions of `images` and of `repr(settings)`, as 64 hex digits."""
    digest = hashlib.sha256(repr(settings).encode())
    for image in images:
        digest.update(file_name_bytes(f"\0{len(image.name)}:{image.name}{image.fingerprint}\0{image.revision}"))
    return digest.hexdigest()


def data_fingerprint(images: Iterable[ImageRef]) -> str:
    """SHA-256 of the names and sizes of `images`, as 64 hex digits: a copy of a folder is the same data."""
    return fingerprint_of(names_and_sizes(images))


def names_and_sizes(images: Iterable[ImageRef]) -> Iterator[tuple[str, str]]:
    """Yield names and sizes in bytes, as text; for images that are no files, what stands in their place."""
    return ((image.name, image.fingerprint.partition(":")[0]) for image in images)


def split_indices(images: Sequence[ImageRef], val_fraction: float) -> tuple[list[int], list[int]]:
    """Indices of the training and of the validation images, both ascending.

    A group is held out if and only if the hash of its name, read as a number in [0, 1), is below `val_fraction`: so
    an image keeps its side when others are added or removed, and the fraction held out is `val_fraction` only on
    average. Where that leaves a side empty, one group changes sides: the one of the smallest hash is held out, or the
    one of the largest trains; it can change back when groups are added. A single group always trains.
    """
    if not images:
        return [], []
    hashes = _unit_hashes([image.group for image in images])
    held_out = hashes < val_fraction
    if hashes.min() < hashes.max() and val_fraction > 0 and not held_out.any():
        held_out = hashes == hashes.min()
    if held_out.all():
        held_out = hashes < hashes.max()
    return np.flatnonzero(~held_out).tolist(), np.flatnonzero(held_out).tolist()


def _unit_hashes(texts: Sequence[str]) -> np.ndarray:
    """The first 8 bytes of each text's SHA-256 as a number in [0, 1), float64 (N,)."""
    digests = b"".join([hashlib.sha256(file_name_bytes(text)).digest()[:8] for text in texts])
    return np.frombuffer(digests, dtype=">u8") / 2.0**64


def require_same_images(images: Sequence[ImageRef], source: str, distributed: "Distributed") -> None:
    """Raise DataError if the names or sizes of the images differ between ranks."""
    if distributed.world_size > 1 and len(set(distributed.all_gather_object(data_fingerprint(images)))) > 1:
        raise DataError(f"the images of {source} are not the same on all machines")
