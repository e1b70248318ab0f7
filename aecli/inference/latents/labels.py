"""An image's class, by the first folder of its path."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aecli.data.image_ref import ImageRef
from aecli.data.inventory import top_folder
from aecli.errors import DataError, count_of, name_examples


@dataclass(frozen=True)
class Labels:
    """The names of the classes, in the order of their numbers, and the number int64 (N,) of each image."""

    classes: Sequence[str]
    numbers: NDArray[np.int64]

    def among(self, classes: Sequence[str]) -> NDArray[np.int64]:
        """Return the numbers (N,) that the images' classes have among `classes`; of others the count of `classes`."""
        known = {name: number for number, name in enumerate(classes)}
        renumbered = np.array([known.get(name, len(classes)) for name in self.classes], np.int64)
        return renumbered[self.numbers]


def label_images(images: Sequence[ImageRef], labels: str) -> Labels | None:
    """Return the classes of images: the first folders below the one that all lie in; None where there are none.

    `labels` is `folders`, or `none`.

    Raises:
        DataError: some images lie in folders, and some beside these.
    """
    if labels == "none":
        return None
    top = top_folder(image.name for image in images)
    parts = [image.name.removeprefix(top).partition("/") for image in images]
    beside = [image.name for image, (_, slash, _) in zip(images, parts, strict=True) if not slash]
    if len(beside) == len(images):
        return None
    if beside:
        raise DataError(
            f"--labels folders: {count_of(len(beside), 'image')} in no folder, beside others' "
            f"({name_examples(beside, len(beside))})\nhint: --labels none"
        )
    classes = sorted({folder for folder, *_ in parts})
    number = {name: index for index, name in enumerate(classes)}
    return Labels(classes, np.array([number[folder] for folder, *_ in parts], np.int64))
