"""The `torchvision:NAME[:SPLIT]` source: a torchvision dataset, downloaded on first use."""

import contextlib
import difflib
import inspect
import sys
import tarfile
import threading
import zipfile
from collections.abc import Mapping
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import platformdirs
from PIL import Image

from aecli.data.decoding.pillow_calls import ImageError, call_pillow, first_line
from aecli.data.image_ref import ImageRef
from aecli.errors import DataError

# Base classes, not datasets.
_BASES = ("VisionDataset", "DatasetFolder", "ImageFolder")

# What the constructors raise for a failed download, a damaged or absent file, an unknown split, or a missing package
# that a dataset needs besides torchvision.
_FAILURES = (OSError, RuntimeError, ValueError, ImportError, EOFError, IndexError, HTTPException, tarfile.TarError,
             zipfile.BadZipFile)  # fmt: skip


def list_torchvision(text: str) -> list[ImageRef]:
    """List the images of the dataset that `NAME[:SPLIT]` names; the training split where none is named.

    Names are `000000.png`, `000001.png`, …: the order of the dataset.

    Raises:
        DataError: the dataset is unknown, can't be downloaded, needs more arguments than a split, or holds no images.
    """
    import torchvision  # takes seconds, which only this source should cost

    name, _, split = text.partition(":")
    source = f"torchvision:{text}"
    dataset = _find(source, name, vars(torchvision.datasets))
    root = Path(platformdirs.user_cache_dir("aecli"), "torchvision")
    arguments = _arguments(source, dataset, split, root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        # Some datasets print progress; standard output is for results.
        with contextlib.redirect_stdout(sys.stderr):
            items = dataset(**arguments)
            count = len(items)
            first = items[0]
    except _FAILURES as error:
        reason = first_line(error).rstrip(".: ")
        raise DataError(
            f"{source} can't be downloaded or opened: {reason}\nhint: check the network, or put its files into {root}"
        ) from error
    if not isinstance(_picture(first), Image.Image):
        raise DataError(f"{source} is not a dataset of images but of {type(_picture(first)).__name__} items")
    lock = threading.Lock()  # datasets need not be thread-safe: FakeData, for one, reseeds torch's global generator
    width = max(6, len(str(count - 1)))
    names = [f"{index:0{width}d}.png" for index in range(count)]
    fingerprint = f"{source}:{torchvision.__version__}"
    return [
        ImageRef(name, name, fingerprint, partial(_read_item, items, index, lock)) for index, name in enumerate(names)
    ]


def _find(source: str, name: str, members: Mapping[str, Any]) -> type[Any]:
    known = {
        member.casefold(): value
        for member, value in members.items()
        if member in members["__all__"] and member not in _BASES and isinstance(value, type)
    }
    dataset = known.get(name.casefold())
    if dataset is None:
        close = difflib.get_close_matches(name.casefold(), known, n=3, cutoff=0.5) or sorted(known)
        kind = "close matches" if len(close) <= 3 else "known"
        names = ", ".join(known[key].__name__ for key in close)
        raise DataError(f"{source}: torchvision has no such dataset\nhint: {kind}: {names}")
    return dataset


def _arguments(source: str, dataset: type[Any], split: str, root: Path) -> dict[str, Any]:
    """Those of root, download and split that the constructor's signature has."""
    parameters = _parameters(dataset)
    arguments: dict[str, Any] = {}
    if "root" in parameters:
        arguments["root"] = str(root)
    if "download" in parameters:
        arguments["download"] = True
    split_parameter = next((name for name in ("split", "image_set") if name in parameters), None)
    if split_parameter and split:
        arguments[split_parameter] = split
    elif "train" in parameters and split in ("", "train", "test"):
        arguments["train"] = split != "test"
    elif split:
        expected = "its splits are train and test" if "train" in parameters else "it has none"
        raise DataError(f"{source}: this dataset has no split {split}\nhint: {expected}")
    missing = [name for name, known in parameters.items() if known.default is known.empty and name not in arguments]
    if split_parameter in missing:
        raise DataError(f"{source}: no split is named\nhint: {source}:SPLIT")
    if missing:
        raise DataError(
            f"{source} needs more arguments ({', '.join(missing)})\nhint: name a folder of its images instead"
        )
    return arguments


def _parameters(dataset: type[Any]) -> dict[str, inspect.Parameter]:
    """The constructor's named parameters; where it passes `**kwargs` on, its base class's too."""
    parameters: dict[str, inspect.Parameter] = {}
    for base in dataset.__mro__:
        if "__init__" not in vars(base):
            continue
        signature = inspect.signature(base.__init__).parameters  # type: ignore[misc]
        kinds = {parameter.kind for parameter in signature.values()}
        for name, parameter in list(signature.items())[1:]:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                parameters.setdefault(name, parameter)
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
    return parameters


def _picture(item: object) -> object:
    return item[0] if isinstance(item, tuple) and item else item


def _read_item(items: Any, index: int, lock: threading.Lock) -> Image.Image:
    with lock:
        picture = _picture(call_pillow(items.__getitem__, index))  # datasets decode by Pillow
    if not isinstance(picture, Image.Image):
        raise ImageError(f"not an image but {type(picture).__name__}")
    return picture
