"""Where the weights of LPIPS' networks are found: shipped, named by the user, kept on this machine, or downloaded."""

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
from urllib.request import Request, urlopen

import torch
from torch import Tensor

from aecli.errors import OutputError, WeightsError, message_of
from aecli.progress import Listener, Notice, Progress
from aecli.storage.atomic_files import atomic_write, sha256_of
from aecli.storage.safetensors_file import open_tensors
from aecli.storage.strict_json import short_repr

FOLDER_VARIABLE = "AECLI_WEIGHTS"
DOWNLOADS = "https://download.pytorch.org/models"
SHIPPED = {"alex": Path(__file__).parent / "weights" / "alexnet_features.safetensors"}

_TIMEOUT = 30  # seconds without a byte
_CHUNK = 2**20  # bytes
_USED = ("features.", "lin")  # of a network's tensors; others (a classifier's) are left
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# What is raised for a file that is damaged, or that is no file of weights: torch.load leaves what it stumbled over.
DAMAGE = (pickle.UnpicklingError, zipfile.BadZipFile, struct.error, RuntimeError, ValueError, TypeError, LookupError,
           ArithmeticError, AttributeError, AssertionError, MemoryError, OSError, EOFError)  # fmt: skip


@dataclass(frozen=True)
class Backbone:
    """The files that hold one network's convolution weights: `features` of ours, `torchvision` its whole network."""

    features: str
    torchvision: str

    @property
    def url(self) -> str:
        """Where torchvision's file is downloaded from."""
        return f"{DOWNLOADS}/{self.torchvision}"


BACKBONES = {
    "alex": Backbone("alexnet_features.safetensors", "alexnet-owt-7be5be79.pth"),
    "vgg": Backbone("vgg16_features.safetensors", "vgg16-397923af.pth"),
    "squeeze": Backbone("squeezenet1_1_features.safetensors", "squeezenet1_1-b8a52dc0.pth"),
}


@dataclass(frozen=True)
class Weights:
    """Tensors by name, the file that they come from, and the SHA-256 of that file."""

    tensors: dict[str, Tensor]
    path: Path
    sha256: str


def backbone_weights(net: str, given: Path | None, listen: Listener) -> Weights:
    """Find and read a network's convolution weights, by torchvision's names (`features.0.weight`, …).

    In this order: the file `given`; the one that ships with aecli; the folder `$AECLI_WEIGHTS`; torch hub's cache; a
    download into that cache.

    Args:
        net: `alex`, `vgg` or `squeeze`.
        given: a `.safetensors` file or torchvision's `.pth`.
        listen: hears of a download.

    Raises:
        WeightsError: they can't be had, or the file is damaged.
    """
    path = _find(net, given, listen)
    url = BACKBONES[net].url if path.name == BACKBONES[net].torchvision else None
    sha256 = checked_sha256(path, f"the weights of LPIPS {net}", url)
    return Weights(_read(path, net), path, sha256)


def checked_sha256(path: Path, what: str, url: str | None) -> str:
    """Return the SHA-256 of a file of weights, which must begin as its name says where it is what `url` gives.

    Raises:
        WeightsError: it doesn't, or can't be read; `what` says what it is.
    """
    try:
        sha256 = sha256_of(path)
    except OSError as error:
        raise WeightsError(f"{path}: {what} can't be read: {error.strerror or error}") from error
    expected = re.search(r"-([0-9a-f]{8})\.pth$", path.name)
    if url and expected and not sha256.startswith(expected[1]):
        raise WeightsError(f"{path} is damaged (its SHA-256 is {sha256}); delete it and fetch {url} anew")
    return sha256


def weight_folders() -> list[Path]:
    """Where weights that don't ship are looked for: `$AECLI_WEIGHTS`, then torch hub's cache."""
    named = os.environ.get(FOLDER_VARIABLE)
    return [*([Path(named).expanduser()] if named else []), Path(torch.hub.get_dir()) / "checkpoints"]


def head_weights(net: str) -> dict[str, Tensor]:
    """LPIPS v0.1's linear heads out of the installed lpips package, which is not imported (that takes seconds).

    Raises:
        WeightsError: the package is not installed, or its file is damaged.
    """
    package = importlib.util.find_spec("lpips")
    if package is None or not package.submodule_search_locations:
        raise WeightsError("LPIPS needs the weights in the lpips package: pip install lpips")
    return _read(Path(package.submodule_search_locations[0]) / "weights" / "v0.1" / f"{net}.pth", net)


def _find(net: str, given: Path | None, listen: Listener) -> Path:
    if given is not None:
        if not given.is_file():
            raise WeightsError(f"--lpips-weights {given}: no such file")
        return given
    if net in SHIPPED:
        return SHIPPED[net]
    backbone = BACKBONES[net]
    folders = weight_folders()
    cache = folders[-1]
    for folder in folders:
        for name in (backbone.features, backbone.torchvision):
            if (folder / name).is_file():
                return folder / name
    target = cache / backbone.torchvision
    listen(Notice(f"downloading {backbone.url} to {target}"))
    try:
        _download(backbone, target, listen)
    except (OSError, HTTPException, OutputError, WeightsError) as error:
        raise WeightsError(
            f"LPIPS {net} needs {backbone.torchvision}, and the download failed ({error}).\n"
            f"Fetch {backbone.url} elsewhere and put it into {cache}, or name the file with --lpips-weights."
        ) from error
    return target


def _download(backbone: Backbone, target: Path, listen: Listener) -> None:
    digest = hashlib.sha256()
    request = Request(backbone.url, headers={"User-Agent": "aecli"})
    with urlopen(request, timeout=_TIMEOUT) as response, atomic_write(target) as file:
        total = int(response.headers.get("Content-Length") or 0)
        done = 0
        for chunk in _chunks(response):
            digest.update(chunk)
            file.write(chunk)
            done += len(chunk)
            listen(Progress(f"downloading {target.name}", done, total))
        if not digest.hexdigest().startswith(target.stem.rpartition("-")[2]):
            raise WeightsError(f"what arrived has the SHA-256 {digest.hexdigest()}")


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    """The body in pieces; a broken connection is no OSError any more, which would be taken for a full disk."""
    try:
        while chunk := response.read(_CHUNK):
            yield chunk
    except (OSError, HTTPException) as error:
        raise WeightsError(str(error) or type(error).__name__) from error


def _read(path: Path, net: str) -> dict[str, Tensor]:
    """Return what LPIPS uses of a file of weights: float32 tensors by name, all finite."""
    try:
        if path.suffix == ".safetensors":
            with open_tensors(path) as file:
                return {name: _plain(name, value) for name, value in file.read().items() if name.startswith(_USED)}
        return {name: _plain(name, value) for name, value in _unpickled(path).items()}
    except DAMAGE as error:
        raise WeightsError(f"{path} can't be read as weights of LPIPS {net}: {message_of(error)}") from error


def _unpickled(path: Path) -> dict[str, Tensor]:
    """Read a `.pth`, whose pickle may make nothing but tensors; raises one of `DAMAGE`."""
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("it is compressed, which PyTorch's own files are not")
    with warnings.catch_warnings(action="ignore"):  # of pickle protocols: either it reads it, or it fails
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(loaded, dict):
        raise ValueError("expected a state dict")
    used = {
        name: value
        for name, value in loaded.items()
        if isinstance(name, str) and name.startswith(_USED) and isinstance(value, Tensor)
    }
    # A pickle can give one number's memory out as a tensor of any shape, and as many tensors.
    if sum(value.numel() * value.element_size() for value in used.values()) > size:
        raise ValueError("its tensors would be larger than the file")
    return used


def _plain(name: str, value: Tensor) -> Tensor:
    if value.dtype not in _DTYPES or value.layout is not torch.strided or value.device.type != "cpu":
        raise ValueError(f"{short_repr(name)} is no tensor of plain numbers")
    value = value.float()
    if not bool(value.isfinite().all()):
        raise ValueError(f"{short_repr(name)} holds numbers that are not finite")
    return value
