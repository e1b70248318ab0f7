"""Which image of a prediction belongs to which ground truth, and what stands in the way. Nothing is decoded here."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import chain
from operator import itemgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aecli.data.decoding.decode import DecodeError, image_size
from aecli.data.image_ref import ImageRef
from aecli.data.sources.registry import list_images
from aecli.errors import ConfigError, DataError
from aecli.progress import Listener
from aecli.runtime.distributed import Distributed
from aecli.runtime.work_queue import map_shared

Size = tuple[int, int]  # (H, W)

_EXAMPLES = 3
_LOT = 64  # pairs whose headers one thread reads before it asks for more


@dataclass(frozen=True)
class Prediction:
    """One `--pred [NAME=]SOURCE`."""

    name: str
    source: str


@dataclass(frozen=True)
class Unpaired:
    """An image that can't be measured: of `prediction`, or of the ground truth where that is None.

    `kind` is one of KINDS; `reason` says the same of this image, in words.
    """

    name: str
    prediction: str | None
    kind: str
    reason: str


# The kinds in the order in which an error lists them: the words before the names, and whether each needs its reason.
KINDS = {
    "duplicate": ("of one name but for the suffix", True),
    "missing": ("missing", False),
    "extra": ("without a ground truth", False),
    "unreadable": ("unreadable", True),
    "small": ("too small", True),
    "size": ("of another size than the ground truth", True),
}


@dataclass(frozen=True, slots=True)  # there are as many as images
class Pair:
    """One ground truth, the image of each prediction that belongs to it, and the ground truth's size."""

    name: str
    truth: ImageRef
    predictions: tuple[ImageRef, ...]
    size: Size = (0, 0)
    resized: tuple[bool, ...] = ()

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """The ground truth and, behind it, each prediction's."""
        return (self.truth, *self.predictions)


@dataclass(frozen=True)
class Pairing:
    """What is to be measured, sorted by name, and what is not."""

    pairs: list[Pair]
    unpaired: list[Unpaired]


def parse_predictions(specs: Sequence[str], flag: str = "--pred") -> list[Prediction]:
    """Read `[NAME=]SOURCE`; without a name, the last part of the source's path, less `.zip`.

    A `=` parts a name from a source if no `/` and no `:` stands before it; so `./a=b` is a folder's path.

    Raises:
        ConfigError: a name or source is empty, or two predictions have one name.
    """
    predictions: list[Prediction] = []
    for spec in specs:
        name, equals, source = spec.partition("=")
        if not equals or "/" in name or ":" in name:
            name, source = source_name(spec), spec
        if not name or not source:
            raise ConfigError(f"{flag} {spec!r}: expected [NAME=]SOURCE")
        if name in (other.name for other in predictions):
            raise ConfigError(
                f"{flag} {spec!r}: {name!r} is taken by another {flag}; name them apart, {flag} NAME=SOURCE"
            )
        predictions.append(Prediction(name, source))
    return predictions


def source_name(source: str) -> str:
    """The last part of a source's path, less `.zip`: what it is called if nobody says."""
    path = Path(source)
    name = path.name if path.name not in ("", "..") else path.resolve().name
    return name[:-4] if name.lower().endswith(".zip") else name


def pair_sources(truth_source: str, predictions: Sequence[Prediction]) -> Pairing:
    """List the sources and pair their images by relative path without suffix.

    A pair has an image in the ground truth and in every prediction, and only one in each.

    Raises:
        DataError: a source can't be listed, or has no name in common with the ground truth.
    """
    truths, doubles = _by_key(truth_source)
    listed = [_by_key(prediction.source) for prediction in predictions]
    unpaired = _duplicates(truths, doubles, None)
    for prediction, (images, more) in zip(predictions, listed, strict=True):
        if not images.keys() & truths.keys():
            raise DataError(
                f"no image of --pred {prediction.name} has the name of one of --gt: {prediction.source} holds "
                f"{_example(images)}, {truth_source} holds {_example(truths)} (suffixes aside, paths must agree)"
            )
        unpaired += _duplicates(images, more, prediction.name)
        unpaired += [
            Unpaired(image.name, prediction.name, "missing", f"not in prediction {prediction.name!r}")
            for key, image in truths.items()
            if key not in images
        ]
        unpaired += [
            Unpaired(image.name, prediction.name, "extra", "not in the ground truth")
            for key, image in images.items()
            if key not in truths
        ]
    pairs = [
        Pair(truth.name, truth, tuple(images[key] for images, _ in listed))
        for key, truth in truths.items()
        if key not in doubles and all(key in images and key not in more for images, more in listed)
    ]
    return Pairing(pairs, unpaired)


def check_sizes(
    pairing: Pairing,
    names: Sequence[str],
    smallest: tuple[str, int],
    resize: bool,
    workers: int | None,
    distributed: Distributed,
    listen: Listener,
) -> Pairing:
    """Read the headers of all pairs and take out those that can't be measured; every process gets the same.

    Args:
        pairing: from `pair_sources`.
        names: of the predictions, in the order of each pair's.
        smallest: the most demanding metric's name, and the shortest side that it can measure.
        resize: whether predictions of another size will be resized, which makes them no mismatch.
        workers: threads that read; None for as many as fit this machine.
        distributed: the processes that share the reading.
        listen: hears of the progress.
    """

    def check(lot: range) -> tuple[NDArray[np.int64], dict[int, list[Unpaired]]]:
        checked = {index: _sized(pairing.pairs[index], names, smallest, resize) for index in lot}
        measured = [(index, *sizes) for index, sizes in checked.items() if isinstance(sizes, tuple)]
        problems = {index: each for index, each in checked.items() if isinstance(each, list)}
        return np.array(measured, dtype=np.int64).reshape(-1, 3 + len(names)), problems

    places = range(len(pairing.pairs))
    lots = [places[start : start + _LOT] for start in places[::_LOT]]
    dealt = [result for _, result in map_shared(check, lots, "checking sizes", workers, distributed, listen)]
    rows = [np.empty((0, 3 + len(names)), dtype=np.int64), *(measured for measured, _ in dealt)]
    found = np.concatenate(distributed.all_gather(np.concatenate(rows)))
    unpaired = gather_unpaired((each for _, problems in dealt for each in problems.items()), distributed)
    return Pairing(list(_with_sizes(pairing.pairs, found)), pairing.unpaired + unpaired)


def gather_unpaired(found: Iterable[tuple[int, Sequence[Unpaired]]], distributed: Distributed) -> list[Unpaired]:
    """Those that all processes found, in the order of the places given with them."""
    mine = [(place, *astuple(each)) for place, unpaired in found for each in unpaired]
    told = sorted(chain.from_iterable(distributed.all_gather_object(mine)), key=itemgetter(0))
    return [Unpaired(*fields) for _, *fields in told]


def _with_sizes(pairs: Sequence[Pair], rows: NDArray[np.int64]) -> Iterator[Pair]:
    """Those of `pairs` that have a row (index, H, W, a flag a prediction: resized or not), in their order."""
    sizes: dict[Size, Size] = {}  # the same few objects for all pairs
    flags: dict[tuple[bool, ...], tuple[bool, ...]] = {}
    for row in rows[np.argsort(rows[:, 0])]:
        index, height, width, *resized = row.tolist()  # not all rows at once: there are as many as images
        size, flag = (height, width), tuple(map(bool, resized))
        yield replace(pairs[index], size=sizes.setdefault(size, size), resized=flags.setdefault(flag, flag))


def describe(unpaired: Sequence[Unpaired]) -> str:
    """How many images of each kind each source has, with a few of their names, in one line."""
    parts = []
    for kind, (words, explained) in KINDS.items():
        groups: dict[str | None, list[Unpaired]] = defaultdict(list)
        for each in unpaired:
            if each.kind == kind:
                groups[each.prediction].append(each)
        for prediction, members in groups.items():
            source = "--gt" if prediction is None else f"--pred {prediction}"
            examples = ", ".join(
                f"{each.name!r} ({each.reason})" if explained else repr(each.name) for each in members[:_EXAMPLES]
            )
            more = ", …" if len(members) > _EXAMPLES else ""
            parts.append(f"{source}: {len(members)} {words}: {examples}{more}")
    return "; ".join(parts)


def mismatch_error(unpaired: Sequence[Unpaired]) -> DataError:
    """The error that says what does not pair, and how to measure all the same."""
    resize = ", --on-mismatch resize resizes predictions" if any(each.kind == "size" for each in unpaired) else ""
    return DataError(f"{describe(unpaired)}.\n--on-mismatch skip measures only what pairs{resize}.")


def _by_key(source: str) -> tuple[dict[str, ImageRef], dict[str, list[ImageRef]]]:
    """The first image of each key, and for keys that have several the others."""
    images: dict[str, ImageRef] = {}
    others: dict[str, list[ImageRef]] = defaultdict(list)
    for image in list_images(source):
        if images.setdefault(key := image.key, image) is not image:
            others[key].append(image)
    return images, dict(others)


def _duplicates(
    images: Mapping[str, ImageRef], others: Mapping[str, list[ImageRef]], prediction: str | None
) -> list[Unpaired]:
    return [
        Unpaired(
            images[key].name, prediction, "duplicate", f"has the name of {', '.join(repr(ref.name) for ref in refs)}"
        )
        for key, refs in others.items()
    ]


def _example(images: Mapping[str, ImageRef]) -> str:
    return repr(next(iter(images.values())).name)


def _sized(
    pair: Pair, names: Sequence[str], smallest: tuple[str, int], resize: bool
) -> tuple[int, ...] | list[Unpaired]:
    """The ground truth's height and width, and whether each prediction is resized to them; or why that can't be."""
    sizes: list[Size] = []
    problems: list[Unpaired] = []
    for name, image in zip((None, *names), pair.images, strict=True):
        try:
            sizes.append(image_size(image))
        except DecodeError as error:
            problems.append(Unpaired(image.name, name, "unreadable", error.reason))
    if problems:
        return problems
    truth, *others = sizes
    metric, side = smallest
    if min(truth) < side:
        reason = f"{_words(truth)}, and {metric} needs {side} pixels a side"
        problems.append(Unpaired(pair.truth.name, None, "small", reason))
    resized = tuple(other != truth for other in others)
    if not resize:
        problems += [
            Unpaired(image.name, name, "size", f"{_words(other)}, its ground truth {_words(truth)}")
            for name, image, other in zip(names, pair.predictions, others, strict=True)
            if other != truth
        ]
    return problems or (*truth, *resized)


def _words(size: Size) -> str:
    return f"{size[1]}x{size[0]}"
