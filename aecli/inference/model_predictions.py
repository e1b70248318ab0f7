"""`aecli eval --model`: reconstructions of the ground truth, made while it is measured, as `reconstruct` makes them."""

import statistics
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aecli.configs import EvalConfig
from aecli.data.decoding.colour import parse_colour
from aecli.data.decoding.conversions import Decoded
from aecli.data.decoding.decode import DecodeError, decode, image_size
from aecli.data.image_ref import ImageRef
from aecli.errors import ConfigError
from aecli.evaluation.made import ModelFigures
from aecli.evaluation.paired import evaluate
from aecli.evaluation.pairing import Size, parse_predictions, split_name
from aecli.evaluation.report import EvalReport
from aecli.inference.floor import Floor, find_floor, fit_floor
from aecli.inference.image_batches import batch_limits, equal_sized
from aecli.inference.loaded_model import MEMORY_HINT, LoadedModel, load_model
from aecli.progress import Listener, Notice, ignore
from aecli.runtime.distributed import Distributed
from aecli.runtime.threads import device_lock

_MOST_WAITING = 32  # batches of which some images were not read yet; older ones are computed again where need be


@dataclass(frozen=True)
class NamedModel:
    """A model and what its predictions are called; `floor_of` names the models that it is the floor of."""

    name: str
    loaded: LoadedModel
    floor_of: tuple[str, ...] = ()


def evaluate_models(config: EvalConfig, listen: Listener = ignore) -> EvalReport:
    """Compare predictions and the reconstructions of models with their ground truth; see `evaluate`.

    The ground truth is read as the first model reads its images, unless the config says otherwise.

    Raises:
        CheckpointError, ModelError: a model can't be found, read or built.
        ConfigError: models read their images in different ways, and the config doesn't say in which.
        AecliError: as `evaluate`.
    """
    return evaluate(config, listen, _load if config.models else None)


def _load(config: EvalConfig, distributed: Distributed, listen: Listener) -> tuple[EvalConfig, "ModelPredictions"]:
    """Load the models, and return them with the options that say how they read the ground truth."""
    taken = [prediction.name for prediction in parse_predictions(config.pred)]
    loaded: dict[str, LoadedModel] = {}
    for spec in config.models:
        name, model = split_name(spec)
        if not model or (model != spec and not name):
            raise ConfigError(f"--model {spec!r}: expected [NAME=]MODEL")
        each = load_model(model, config.runs, config.device, config.precision, listen, config.image_size, config.fit)
        name = name or each.located.label
        if name in (*taken, *loaded):
            raise ConfigError(
                f"--model {spec}: the name {name!r} is already used\nhint: give each a name, --model NAME=MODEL"
            )
        loaded[name] = each
    reading = _reading(loaded, config)
    named = [NamedModel(name, reading.applied_to(each)) for name, each in loaded.items()]
    if config.floor:
        named = _with_floors(named, taken, distributed, listen)
    config = replace(
        config,
        image_size=None if reading.is_whole else reading.image_size,
        fit=None if reading.is_whole else reading.fit,
        background=reading.background,
    )
    return config, ModelPredictions(named, reading.is_whole, config.batch_size, listen)


@dataclass(frozen=True)
class _Reading:
    """How models read images: to squares of `image_size` by `fit` over `background`, or whole."""

    image_size: int
    fit: str
    background: str
    is_whole: bool

    @classmethod
    def of(cls, loaded: LoadedModel, config: EvalConfig) -> "_Reading":
        """Return how a model reads images, where the config doesn't say how."""
        is_whole = config.native or loaded.takes_whole
        return cls(0 if is_whole else loaded.image_size, "" if is_whole else loaded.fit,
                   config.background or loaded.background, is_whole)  # fmt: skip

    def __str__(self) -> str:
        how = "whole" if self.is_whole else f"{self.image_size}x{self.image_size} by {self.fit}"
        return f"{how} over {self.background}"

    @property
    def options(self) -> str:
        """The options that ask for it."""
        size = "--native" if self.is_whole else f"--image-size {self.image_size} --fit {self.fit}"
        return f"{size} --background {self.background}"

    def applied_to(self, loaded: LoadedModel) -> LoadedModel:
        """Return the model for images that are read so; ConfigError where it can't have them."""
        if not self.is_whole:
            loaded = loaded.with_input(self.image_size, self.fit)
        return replace(loaded, background=self.background).with_tile("auto" if self.is_whole else "off")


def _reading(loaded: Mapping[str, LoadedModel], config: EvalConfig) -> _Reading:
    """Return how the first of the models that say so reads its images; ConfigError where another one differs."""
    own = {name: _Reading.of(each, config) for name, each in loaded.items() if each.has_own_input}
    if not own:
        return _Reading.of(next(iter(loaded.values())), config)
    first, reading = next(iter(own.items()))
    for name, other in own.items():
        if other != reading:
            raise ConfigError(
                f"--model {name}: reads images {other}, {first} {reading}, and one ground truth is for all\n"
                f"hint: {reading.options}"
            )
    return reading


def _with_floors(
    models: Sequence[NamedModel], taken: Sequence[str], distributed: Distributed, listen: Listener
) -> list[NamedModel]:
    """Return the models, and below each its floor; one that is the floor of several is below the last of these."""
    found = {each.name: find_floor(each.name, each.loaded, listen) for each in models}
    sharing: dict[Floor, list[NamedModel]] = {}
    for each in models:
        if floor := found[each.name]:
            sharing.setdefault(floor[0], []).append(each)
    names = {*taken, *found}
    rows: list[NamedModel] = []
    for each in models:
        rows.append(each)
        if (floor := found[each.name]) and sharing[floor[0]][-1] is each:
            owners = tuple(owner.name for owner in sharing[floor[0]])
            fitted = fit_floor(*floor, each.loaded, distributed, listen)
            name = f"pca {fitted.kept}"
            name = f"{name} of {each.name}" if name in names else name
            names.add(name)
            rows.append(NamedModel(name, fitted, owners))
    return rows


@dataclass
class _Batch:
    """The results of a batch that were not read yet, by place in the ground truth; `lock` is held to compute them."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    results: dict[int, tuple[Decoded, list[Decoded]] | DecodeError] = field(default_factory=dict)


class ModelPredictions:
    """Reconstructions of the images of a ground truth by several models that read them in the same way.

    They are computed in the batches of `reconstruct`, on which rounding depends, when the first of a batch is read.
    """

    def __init__(self, models: Sequence[NamedModel], is_whole: bool, batch_size: int, listen: Listener) -> None:
        """Compute at most `batch_size` images at a time; `is_whole` says that they keep their own sizes."""
        self._models, self._is_whole, self._listen = models, is_whole, listen
        first = models[0].loaded
        self._batch_size, self._max_pixels = batch_limits(first, batch_size, is_whole)
        self._on_cpu = first.placement.device.type == "cpu"
        self._hint = f"a smaller --batch-size than {batch_size}, --workers 1, {MEMORY_HINT}"
        self._device_lock: AbstractContextManager[Any] = device_lock(first.placement.device.type)
        self._lock = threading.Lock()  # of the next two
        self._batches: OrderedDict[tuple[int, ...], _Batch] = OrderedDict()
        self._sizes: dict[int, list[Size | None]] = {}
        self._truths: Sequence[ImageRef] = ()
        self._places: dict[str, int] = {}
        self._timings: list[list[_Timing]] = [[] for _ in models]
        self._tiled: set[str] = set()

    @property
    def names(self) -> Sequence[str]:
        """What the models are called."""
        return [each.name for each in self._models]

    def begin(self, truths: Sequence[ImageRef]) -> None:
        """Take all images of the ground truth, in their order, before any is read."""
        self._truths = truths
        self._places = {image.name: place for place, image in enumerate(truths)}

    def read(self, truth: ImageRef) -> tuple[Decoded, list[Decoded]]:
        """Return an image of the ground truth as 8 bits and each model's reconstruction of it; raises DecodeError."""
        place = self._places[truth.name]
        members = self._computed_with(place)
        with self._lock:
            batch = self._batches.setdefault(members, _Batch())
            while len(self._batches) > _MOST_WAITING:
                self._batches.popitem(last=False)
        with batch.lock:
            if place not in batch.results:
                batch.results.update(self._reconstruct(members))
            found = batch.results.pop(place)
            if not batch.results:
                with self._lock:
                    if self._batches.get(members) is batch:
                        del self._batches[members]
        if isinstance(found, DecodeError):
            raise found
        return found

    def figures(self, distributed: Distributed) -> list[ModelFigures]:
        """Return what each keeps, its parameters, and its images a second; all processes call it."""
        everywhere = distributed.all_gather_object((self._timings, self._tiled))
        for name in sorted(set().union(*(tiled for _, tiled in everywhere))):
            self._listen(Notice(f"{name} has a norm over the whole picture, and was computed in tiles: they may differ "
                                "in tone"))  # fmt: skip
        found = []
        for column, each in enumerate(self._models):
            timings = [timings[column] for timings, _ in everywhere]
            workers = sum(len({timing.thread for timing in own}) if self._on_cpu else 1 for own in timings if own)
            rate = statistics.median(timing.images / timing.seconds for timing in chain.from_iterable(timings))
            model = each.loaded.model
            found.append(ModelFigures(
                each.loaded.kept, sum(parameter.numel() for parameter in model.parameters()),
                each.loaded.placement.precision, rate * workers, each.floor_of,
            ))  # fmt: skip
        return found

    def _computed_with(self, place: int) -> tuple[int, ...]:
        """Return the places of the images of the batch of an image; of whole ones, of those that have its size."""
        start = place - place % self._batch_size
        members = range(start, min(start + self._batch_size, len(self._truths)))
        if not self._is_whole:
            return tuple(members)
        with self._lock:
            if start not in self._sizes:
                self._sizes[start] = [_size(self._truths[member]) for member in members]
            sizes = self._sizes[start]
        return tuple(member for member in members if sizes[member - start] == sizes[place - start])

    def _reconstruct(self, members: Sequence[int]) -> dict[int, tuple[Decoded, list[Decoded]] | DecodeError]:
        """Read and reconstruct images; return the results by place."""
        results: dict[int, tuple[Decoded, list[Decoded]] | DecodeError] = {}
        read: list[tuple[tuple[int, Decoded], NDArray[np.uint8]]] = []
        for place in members:
            try:
                decoded = self._read(self._truths[place])
                read.append(((place, decoded), decoded.pixels.transpose(2, 0, 1)))
            except DecodeError as error:
                results[place] = error
        for together, images in equal_sized(read, self._max_pixels):
            made = [self._run(column, images) for column in range(len(self._models))]
            for row, (place, truth) in enumerate(together):
                # With the truth's profile, because a reconstruction is in the colours that the model was given.
                results[place] = (
                    truth,
                    [
                        Decoded(np.ascontiguousarray(each[row].transpose(1, 2, 0)), profile=truth.profile)
                        for each in made
                    ],
                )
        return results

    def _read(self, image: ImageRef) -> Decoded:
        loaded = self._models[0].loaded
        return decode(image, parse_colour(loaded.background)) if self._is_whole else loaded.read_image(image)

    def _run(self, column: int, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        each = self._models[column]
        if each.loaded.tile_side(*images.shape[-2:]) and each.loaded.receptive_field.is_whole:
            self._tiled.add(each.name)
        with self._device_lock:
            began = time.perf_counter()
            made = each.loaded.reconstruct(images, self._hint)
            seconds = time.perf_counter() - began
        self._timings[column].append(_Timing(len(images), seconds, threading.get_ident()))
        return made


class _Timing(NamedTuple):
    """How long a thread took to reconstruct so many images together."""

    images: int
    seconds: float
    thread: int


def _size(image: ImageRef) -> Size | None:
    """(H, W) by the header, or None where that is damaged."""
    try:
        return image_size(image)
    except DecodeError:
        return None
