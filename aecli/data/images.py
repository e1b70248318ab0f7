"""What is known of an image before it is read, and which side of a split it stands on."""

import hashlib
import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from PIL import Image


@dataclass(frozen=True)
class ImageRef:
    """One image of a source, not yet read.

    `name` is its relative path with `/` and suffix, unique in its source. Images of one `group` stay on one side of a
    split. `fingerprint` changes when the content changes; `revision` also tells apart two files on this machine that
    agree in name, size and modification time (a cache needs that, an identity of the data does not).
    `load()` gives the encoded bytes or a Pillow image, and may be called from several threads.
    """

    name: str
    group: str
    fingerprint: str
    load: Callable[[], bytes | Image.Image] = field(compare=False, repr=False)
    revision: str = field(default="", compare=False, repr=False)

    @property
    def key(self) -> str:
        """The name without its suffix: what pairs it with an image of another source."""
        return posixpath.splitext(self.name)[0]


def split_indices(images: Sequence[ImageRef], val_fraction: float) -> tuple[list[int], list[int]]:
    """Indices of the training and of the validation images, both ascending.

    A group is held out if and only if the hash of its name, read as a number in [0, 1), is below `val_fraction`: so
    an image keeps its side when others are added or removed, and the share held out is `val_fraction` on average
    only. Where that rule leaves a side empty, one group crosses over: the one of the smallest hash is held out, or
    the one of the largest trains; such a group can go back when groups are added. One group alone always trains.
    """
    hashes = {image.group: _unit_hash(image.group) for image in images}
    held_out = {group for group, value in hashes.items() if value < val_fraction}
    if val_fraction > 0 and not held_out and len(hashes) > 1:
        held_out = {min(hashes, key=hashes.__getitem__)}
    if len(held_out) == len(hashes) and hashes:
        held_out.remove(max(hashes, key=hashes.__getitem__))
    train = [index for index, image in enumerate(images) if image.group not in held_out]
    val = [index for index, image in enumerate(images) if image.group in held_out]
    return train, val


def _unit_hash(text: str) -> float:
    """The first 8 bytes of SHA-256 as a number in [0, 1)."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
