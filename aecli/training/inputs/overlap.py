"""Validation images that stand in training too, which make a model look better than it is."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from aecli.data.image_ref import ImageRef
from aecli.diagnosis import shared_images

READ_LIMIT = 2**29  # bytes, a second or two: of a larger set, or one of equal sizes, only a part is compared


@dataclass(frozen=True)
class Overlap:
    """How many of the `compared` validation images are also training images, and the first such pair of names."""

    compared: int
    found: int
    example: tuple[str, str] = ("", "")

    def __str__(self) -> str:
        """One line for the user."""
        return shared_images(self.found, self.compared, self.example).text


def find_overlap(train: Sequence[ImageRef], val: Sequence[ImageRef]) -> Overlap:
    """Compare the contents of those training and validation images whose encoded sizes are equal.

    Images of no file have no such size, and count as different. Sizes whose images would take more than is left of
    `READ_LIMIT` are left out.
    """
    held_out, trained = defaultdict(list), defaultdict(list)
    for image in val:
        held_out[image.encoded_bytes].append(image)
    for image in train:
        if image.encoded_bytes in held_out:
            trained[image.encoded_bytes].append(image)
    left, compared, found, example = READ_LIMIT, len(val), 0, ("", "")
    for size, candidates in held_out.items():
        alike = trained[size] if size else []
        cost = size * (len(alike) + len(candidates))
        if not alike:
            continue
        if cost > left:
            compared -= len(candidates)
            continue
        left -= cost
        names = {_digest(image): image.name for image in reversed(alike)}
        names.pop(None, None)
        twins = [(image.name, names[digest]) for image in candidates if (digest := _digest(image)) in names]
        example = example if found or not twins else twins[0]
        found += len(twins)
    return Overlap(compared, found, example)


def _digest(image: ImageRef) -> bytes | None:
    """SHA-256 of the encoded image; None where it is none, or can't be read, which decoding reports."""
    try:
        content = image.load()
    except OSError:
        return None
    return hashlib.sha256(content).digest() if isinstance(content, bytes) else None
