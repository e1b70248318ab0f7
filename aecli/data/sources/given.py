"""Images given in Python (see `configs.given_images`) become a list of images, read one by one."""

import hashlib
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from aecli.configs.given_images import GivenImages, is_array, is_path, is_tensor, picture_problem
from aecli.data.decoding.pillow_calls import ImageError, call_pillow
from aecli.data.image_ref import FileRef, ImageRef, data_fingerprint
from aecli.errors import DataError, single_line
from aecli.progress import Progress

_REPORT_SECONDS = 0.05
_IMAGE_KEYS = ("image", "img")  # of a Dataset's items, preferred in this order
_ORIENTATION_TAG = 0x0112


class PictureRef(ImageRef):
    """A picture given in Python, named by its index, alone in its group.

    Its fingerprint is the SHA-256 of its pixels, computed when it is first asked for: reading a Dataset takes time.
    """

    __slots__ = ("_digest",)

    def __init__(self, name: str, read: Callable[[], Image.Image]) -> None:
        """`read` returns the picture; it may raise OSError, ImageError or DataError."""
        super().__init__(name, name, "", read)
        self._digest = ""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the picture's content, or "unreadable"."""
        if not self._digest:
            try:
                self._digest = _digest_of(self._picture())
            except (OSError, ImageError):
                self._digest = "unreadable"
        return self._digest

    def load(self) -> Image.Image:
        """The picture; raises DataError if it isn't the one of the fingerprint, else as `ImageRef.load`."""
        picture = self._picture()
        if self._digest and _digest_of(picture) != self._digest:
            raise DataError(
                f"{self.name}: another picture than when it was first read\n"
                "hint: give images that don't change, without random transforms; flip=True mirrors at random"
            )
        return picture

    def _picture(self) -> Image.Image:
        picture = super().load()
        assert isinstance(picture, Image.Image)  # for the type checker
        return picture


def list_given(source: GivenImages) -> list[ImageRef]:
    """List images given in Python: pictures by index (`000000.png`, …), paths by what follows their common folder.

    Raises:
        DataError: a path is listed twice, or is not a file.
    """
    content = source.content
    if isinstance(content, tuple) and isinstance(content[0], ImageRef):
        return list(content)
    if isinstance(content, tuple) and is_path(content[0]):
        return _list_paths(content)
    read: Callable[[int], Image.Image]
    if isinstance(content, tuple) or is_array(content) or is_tensor(content):
        read = partial(_picture_of, content)
    else:
        read = partial(_item_of, content, Lock())
    names = [f"{index:06d}.png" for index in range(len(content))]
    return [PictureRef(name, partial(read, index)) for index, name in enumerate(names)]


def read_given(source: GivenImages) -> Generator[Progress, None, GivenImages]:
    """Read all images once, for their fingerprint, with reports of progress; return the source with it in its name.

    Raises:
        DataError: an item of a Dataset is no picture, or as `list_given`.
    """
    images, reported = list_given(source), 0.0
    for done, image in enumerate(images, start=1):
        _ = image.fingerprint
        if time.monotonic() - reported >= _REPORT_SECONDS or done == len(images):
            reported = time.monotonic()
            yield Progress("reading", done, len(images))
    return GivenImages(f"{source.description} ({data_fingerprint(images)[:16]})", tuple(images))


def _list_paths(paths: Sequence[Any]) -> list[ImageRef]:
    files = [os.path.abspath(os.path.expanduser(os.fsdecode(path))) for path in paths]
    root = os.path.commonpath([os.path.dirname(file) for file in files])
    images: dict[str, ImageRef] = {}
    for file in files:
        name = os.path.relpath(file, root).replace(os.sep, "/")
        if name in images:
            raise DataError(f"{single_line(file)} is listed twice")
        if not os.path.isfile(file):
            raise DataError(f"{single_line(file)}: no such file; a list holds files, not folders")
        images[name] = FileRef(name, root, os.stat(file))
    return [images[name] for name in sorted(images)]  # a folder is listed in any order


def _picture_of(pictures: Any, index: int) -> Image.Image:
    return _to_pillow(pictures[index])


def _item_of(dataset: Any, lock: Lock, index: int) -> Image.Image:
    """Return the picture of an item: itself, the first of a tuple, or what a mapping has under `image`."""
    with lock:  # datasets need not be thread-safe
        item = dataset[index]
    if isinstance(item, list | tuple) and item:
        item = item[0]
    elif isinstance(item, Mapping):
        item = next((item[key] for key in _IMAGE_KEYS if key in item), item)
    if problem := picture_problem(item):
        raise DataError(f"{type(dataset).__name__}: item {index}, {problem}")
    return _to_pillow(item)


def _to_pillow(picture: Any) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    if is_tensor(picture):
        picture = picture.detach().cpu().numpy()
        picture = picture.transpose(1, 2, 0) if picture.ndim == 3 else picture
    array = picture[..., 0] if picture.ndim == 3 and picture.shape[-1] == 1 else picture
    return Image.fromarray(np.ascontiguousarray(array))


def _digest_of(picture: Image.Image) -> str:
    """SHA-256 of all that decides how a picture is decoded, in hexadecimal."""
    call_pillow(picture.load)
    described = (picture.mode, picture.size, picture.getpalette(), picture.info.get("transparency"),
                 picture.getexif().get(_ORIENTATION_TAG))  # fmt: skip
    digest = hashlib.sha256(repr(described).encode())
    digest.update(picture.tobytes())
    return f"sha256-{digest.hexdigest()}"
