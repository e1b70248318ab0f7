"""Which image of a prediction belongs to which ground truth, by name; no file is opened here."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aecli.data.image_ref import ImageRef
from aecli.data.sources.registry import list_images
from aecli.errors import ConfigError, DataError
from aecli.evaluation.unpaired import Unpaired
from aecli.progress import Listener, ignore

Size = tuple[int, int]  # (H, W)


@dataclass(frozen=True)
class Prediction:
    """One `--pred [NAME=]SOURCE`."""

    name: str
    source: str


@dataclass(frozen=True, slots=True)  # there are as many as images
class Pair:
    """A ground truth, and the image of each prediction that belongs to it.

    `size` is the one at which they are measured; `resized` says which of `images` are brought to it, `cropped` whether
    all are cut to it.
    """

    name: str
    truth: ImageRef
    predictions: tuple[ImageRef, ...]
    size: Size = (0, 0)
    resized: tuple[bool, ...] = ()
    cropped: bool = False

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """The ground truth, then each prediction's image."""
        return (self.truth, *self.predictions)


@dataclass(frozen=True)
class Pairing:
    """The pairs to measure, sorted by name, the images that are left over, and the option by which they would pair."""

    pairs: list[Pair]
    unpaired: list[Unpaired]
    renaming: str = ""


def parse_predictions(specs: Sequence[str], flag: str = "--pred") -> list[Prediction]:
    """Parse `[NAME=]SOURCE`; the default name is the last part of the source's path, without `.zip`.

    A `=` separates a name from a source if no `/` and no `:` precedes it; so `./a=b` is a folder's path.

    Raises:
        ConfigError: a name or source is empty, or two predictions have the same name.
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
                f"{flag} {spec!r}: the name {name!r} is already used\nhint: give each a name, {flag} NAME=SOURCE"
            )
        predictions.append(Prediction(name, source))
    return predictions


def source_name(source: str) -> str:
    """The default name of a source: the last part of its path, without `.zip`."""
    path = Path(source)
    name = path.name if path.name not in ("", "..") else path.resolve().name
    return name[:-4] if name.lower().endswith(".zip") else name


def pair_sources(truth_source: str, predictions: Sequence[Prediction], listen: Listener = ignore) -> Pairing:
    """List the sources and pair their images by relative path without suffix.

    A pair has exactly one image in the ground truth and in every prediction.

    Raises:
        DataError: a source can't be listed, or has no name in common with the ground truth.
    """
    truths, truth_duplicates = _by_key(truth_source, listen)
    listed = [_by_key(prediction.source, listen) for prediction in predictions]
    unpaired = _duplicates(truths, truth_duplicates, None)
    for prediction, (images, duplicates) in zip(predictions, listed, strict=True):
        if not images.keys() & truths.keys():
            raise DataError(
                f"--pred {prediction.name}: no image has the name of an image of --gt\nhint: paths must be the same "
                f"except for the suffix: {prediction.source} has {_example(images)}, {truth_source} {_example(truths)}"
            )
        unpaired += _duplicates(images, duplicates, prediction.name)
        missing, extra = (
            [image.name for key, image in some.items() if key not in others]
            for some, others in ((truths, images), (images, truths))
        )
        reason = f"not in prediction {prediction.name!r}"
        unpaired += [Unpaired(name, prediction.name, "missing", reason) for name in missing]
        unpaired += [Unpaired(name, prediction.name, "extra", "not in the ground truth") for name in extra]
    pairs = [
        Pair(truth.name, truth, tuple(images[key] for images, _ in listed))
        for key, truth in truths.items()
        if key not in truth_duplicates and all(key in images and key not in more for images, more in listed)
    ]
    return Pairing(pairs, unpaired)


def _by_key(source: str, listen: Listener) -> tuple[dict[str, ImageRef], dict[str, list[ImageRef]]]:
    """The first image of each key, and the others of keys that have several."""
    images: dict[str, ImageRef] = {}
    duplicates: dict[str, list[ImageRef]] = defaultdict(list)
    for image in list_images(source, listen):
        if images.setdefault(key := image.key, image) is not image:
            duplicates[key].append(image)
    return images, dict(duplicates)


def _duplicates(
    images: Mapping[str, ImageRef], duplicates: Mapping[str, list[ImageRef]], prediction: str | None
) -> list[Unpaired]:
    return [
        Unpaired(images[key].name, prediction, "duplicate", f"same as {', '.join(repr(ref.name) for ref in refs)}")
        for key, refs in duplicates.items()
    ]


def _example(images: Mapping[str, ImageRef]) -> str:
    return repr(next(iter(images.values())).name)
