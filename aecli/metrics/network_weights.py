"""Weights of the metrics' networks: shipped, given by the user, kept on this machine, or downloaded."""

import hashlib
import importlib.util
import os
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import torch
from torch import Tensor

from aecli.errors import OutputError, WeightsError, message_of
from aecli.metrics.alexnet import WEIGHTS
from aecli.progress import Listener, Notice, Progress
from aecli.storage.atomic_files import atomic_write, sha256_of
from aecli.storage.safetensors_file import open_tensors
from aecli.storage.strict_json import short_repr

FOLDER_VARIABLE = "AECLI_WEIGHTS"
DOWNLOADS = "https://download.pytorch.org/models"
# torchvision's files, each of a whole network. The convolutions alone may be in, say, vgg16_features.safetensors.
BACKBONES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"}
SHIPPED = {"alex": WEIGHTS}
DISTS_HEADS = Path(__file__).parent / "weights" / "dists_heads.safetensors"

_TIMEOUT = 30  # seconds without a byte
_CHUNK = 2**20  # bytes
_PREFIXES = ("features.", "lin")  # of the tensors that LPIPS uses; a classifier's are ignored
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# What torch.load and zipfile raise for damaged files: a pickle is a program, and a damaged one fails in any way.
_LOAD_ERRORS = (pickle.UnpicklingError, zipfile.BadZipFile, struct.error, RuntimeError, ValueError, TypeError,
                LookupError, ArithmeticError, AttributeError, AssertionError, MemoryError, OSError,
                EOFError)  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """Tensors by name, the file they come from, and its SHA-256."""

    tensors: dict[str, Tensor]
    path: Path
    sha256: str


class UnreadableWeights(Exception):  # noqa: N818 (becomes a WeightsError, which names the file)
    """A file is damaged, or holds no weights."""


def backbone_weights(net: str, given: Path | None, listen: Listener) -> Weights:
    """Find and read a network's convolution weights, by torchvision's names (`features.0.weight`, …).

    In this order: the file `given`; the one that ships with aecli; the folder `$AECLI_WEIGHTS`; torch hub's cache; a
    download into that cache.

    `given` is a `.safetensors` file or torchvision's `.pth`.

    Raises:
        WeightsError: they can't be found or downloaded, or the file is damaged.
    """
    path = _find(net, given, listen)
    url = f"{DOWNLOADS}/{path.name}" if path.name == BACKBONES[net] else None
    sha256 = checked_sha256(path, f"the weights of LPIPS {net}", url)
    return Weights(_read(path, net, "expected a .safetensors file, or torchvision's .pth"), path, sha256)


def head_weights(net: str) -> dict[str, Tensor]:
    """LPIPS v0.1's linear heads out of the installed lpips package, which is not imported (that takes seconds).

    Raises:
        WeightsError: the package is not installed, or its file is damaged.
    """
    reinstall = "pip install --force-reinstall lpips"
    package = importlib.util.find_spec("lpips")
    if package is None or not package.submodule_search_locations:
        raise WeightsError(f"LPIPS needs the weights in the lpips package, which is not installed\nhint: {reinstall}")
    return _read(Path(package.submodule_search_locations[0]) / "weights" / "v0.1" / f"{net}.pth", net, reinstall)


def checked_sha256(path: Path, what: str, url: str | None) -> str:
    """Return the SHA-256 of a file, checked against the digits in its name if it was downloaded from `url`.

    Raises WeightsError if it doesn't match, or the file, described by `what`, can't be read.
    """
    try:
        sha256 = sha256_of(path)
    except OSError as error:
        raise WeightsError(f"{path}: {what} can't be read: {error.strerror or error}") from error
    expected = re.search(r"-([0-9a-f]{8})\.pth$", path.name)
    if url and expected and not sha256.startswith(expected[1]):
        raise WeightsError(f"{path} is damaged (SHA-256 {sha256})\nhint: delete it and download {url} again")
    return sha256


def weight_folders() -> list[Path]:
    """Where weights that don't ship are searched: `$AECLI_WEIGHTS`, then torch hub's cache."""
    named = os.environ.get(FOLDER_VARIABLE)
    return [*([Path(named).expanduser()] if named else []), Path(torch.hub.get_dir()) / "checkpoints"]


def load_pickle(path: Path, map_location: str = "cpu") -> Any:
    """Load a `.pth`, whose pickle can create tensors and plain containers only; raises UnreadableWeights."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                    raise UnreadableWeights("it is compressed, which PyTorch's own files are not")
        with warnings.catch_warnings(action="ignore"):  # about pickle protocols
            return torch.load(path, map_location=map_location, weights_only=True)
    except _LOAD_ERRORS as error:
        raise UnreadableWeights(message_of(error)) from error


def local_weights(net: str) -> Path | None:
    """Return the file of a network's convolution weights on this machine, or None where it would be downloaded."""
    if net in SHIPPED:
        return SHIPPED[net]
    name = BACKBONES[net]
    names = (f"{name.partition('-')[0]}_features.safetensors", name)
    candidates = (folder / each for folder in weight_folders() for each in names)
    return next((path for path in candidates if path.is_file()), None)


def _find(net: str, given: Path | None, listen: Listener) -> Path:
    if given is not None:
        if not given.is_file():
            raise WeightsError(f"--lpips-weights {given}: no such file")
        return given
    if (found := local_weights(net)) is not None:
        return found
    name, folder = BACKBONES[net], weight_folders()[-1]
    target, url = folder / name, f"{DOWNLOADS}/{name}"
    listen(Notice(f"downloading {url} to {target}"))
    try:
        _download(url, target, listen)
    except (OSError, HTTPException, OutputError, WeightsError) as error:
        raise WeightsError(
            f"LPIPS {net} needs {name}, and the download failed ({message_of(error)})\n"
            f"hint: download {url} elsewhere and put it into {folder}, or name the file with --lpips-weights"
        ) from error
    return target


def _download(url: str, target: Path, listen: Listener) -> None:
    digest = hashlib.sha256()
    request = Request(url, headers={"User-Agent": "aecli"})
    with urlopen(request, timeout=_TIMEOUT) as response, atomic_write(target) as file:
        total = int(response.headers.get("Content-Length") or 0)
        done = 0
        for chunk in _chunks(response):
            digest.update(chunk)
            file.write(chunk)
            done += len(chunk)
            listen(Progress(f"downloading {target.name}", done, total))
        if not digest.hexdigest().startswith(target.stem.rpartition("-")[2]):
            raise WeightsError(f"the SHA-256 of what arrived is {digest.hexdigest()}")


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    """Yield the body; a broken connection is a WeightsError, as `atomic_write` would report an OSError of the disk."""
    try:
        while chunk := response.read(_CHUNK):
            yield chunk
    except (OSError, HTTPException) as error:
        raise WeightsError(message_of(error)) from error


def _read(path: Path, net: str, hint: str) -> dict[str, Tensor]:
    """Return the tensors that LPIPS uses of a file: float32, all finite."""
    try:
        if path.suffix == ".safetensors":
            tensors = {name: value for name, value in read_safetensors(path).items() if name.startswith(_PREFIXES)}
        else:
            tensors = _read_pickle(path)
        return {name: _checked_float(name, value) for name, value in tensors.items()}
    except UnreadableWeights as error:
        raise WeightsError(f"{path} can't be read as weights of LPIPS {net}: {error}\nhint: {hint}") from error


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file; raises UnreadableWeights."""
    try:
        with open_tensors(path) as file:
            return dict(file.read())
    except (OSError, ValueError, MemoryError) as error:
        raise UnreadableWeights(message_of(error)) from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    loaded = load_pickle(path)
    if not isinstance(loaded, dict):
        raise UnreadableWeights("expected a state dict")
    tensors = {
        name: value
        for name, value in loaded.items()
        if isinstance(name, str) and name.startswith(_PREFIXES) and isinstance(value, Tensor)
    }
    # A pickle can expand one stored number to a tensor of any shape, any number of times.
    if sum(value.numel() * value.element_size() for value in tensors.values()) > path.stat().st_size:
        raise UnreadableWeights("its tensors would be larger than the file")
    return tensors


def _checked_float(name: str, value: Tensor) -> Tensor:
    if value.dtype not in _DTYPES or value.layout is not torch.strided or value.device.type != "cpu":
        raise UnreadableWeights(f"{short_repr(name)} is not a dense tensor of floating-point numbers")
    value = value.float()
    if not bool(value.isfinite().all()):
        raise UnreadableWeights(f"{short_repr(name)} holds values that are not finite")
    return value
