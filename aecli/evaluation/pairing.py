"""Which image of a prediction belongs to which ground truth, by name; no file is opened here."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aecli.configs.given_images import GivenImages
from aecli.data.image_ref import ImageRef
from aecli.data.sources.selection import is_image_name
from aecli.errors import ConfigError, DataError, quoted, single_line
from aecli.evaluation.matching import Listed, find_renaming, list_source, match_keys, renaming_options
from aecli.evaluation.unpaired import Unpaired
from aecli.progress import Listener, Notice, ignore

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
    """The pairs to measure, sorted by name, the images that are left over, and the option by which they would pair.

    `truths` are all images of the ground truth, in their order.
    """

    pairs: list[Pair]
    unpaired: list[Unpaired]
    truths: list[ImageRef]
    renaming: str = ""


def parse_predictions(specs: Sequence[str], flag: str = "--pred") -> list[Prediction]:
    """Parse `[NAME=]SOURCE`; the default name is the last part of the source's path, without `.zip`.

    Images given in Python have names of their own. A `=` separates a name from a source if no `/` and no `:` precedes
    it; so `./a=b` is a folder's path.

    Raises:
        ConfigError: a name or source is empty, or two predictions have the same name.
    """
    predictions: list[Prediction] = []
    for spec in specs:
        name, source = split_name(spec)
        if spec == source and not name:
            name = source_name(spec)
        if not name or not source:
            raise ConfigError(f"{flag} {spec!r}: expected [NAME=]SOURCE")
        if name in (other.name for other in predictions):
            raise ConfigError(
                f"{flag} {spec!r}: the name {name!r} is already used\nhint: give each a name, {flag} NAME=SOURCE"
            )
        predictions.append(Prediction(name, source))
    return predictions


def split_name(spec: str) -> tuple[str, str]:
    """Split `[NAME=]SOURCE` into name and source; the name is empty where the whole is the source."""
    if isinstance(spec, GivenImages):
        return spec.name, spec
    name, equals, source = spec.partition("=")
    return ("", spec) if not equals or "/" in name or ":" in name else (name, source)


def source_name(source: str) -> str:
    """The default name of a source: the last part of its path, without `.zip`."""
    path = Path(source)
    name = path.name if path.name not in ("", "..") else path.resolve().name
    return name[:-4] if name.lower().endswith(".zip") else name


def pair_sources(
    truth_source: str, predictions: Sequence[Prediction], templates: Sequence[str] = (), listen: Listener = ignore
) -> Pairing:
    """List the sources and pair their images by relative path without suffix, in Unicode's composed form.

    Of a prediction whose names don't pair as they are, the folders that enclose all of its images, or of the ground
    truth's, are left off; `templates` name predictions after the ground truth. A pair has exactly one image in the
    ground truth and in every prediction.

    Raises:
        DataError: a source can't be listed, or has no name in common with the ground truth.
    """
    sources = [truth_source, *(prediction.source for prediction in predictions)]
    are_files = all(os.path.isfile(source) and is_image_name(source) for source in sources)
    truths, *listed = [list_source(source, sources, are_files, listen) for source in sources]
    matches = [match_keys(truths, each, templates) for each in listed]
    for template in set(templates) - {match.template for match in matches}:
        listen(Notice(f"--pred-name {template}: no prediction is named so"))
    found = [find_renaming(truths, each, match) for each, match in zip(listed, matches, strict=True)]
    renaming = renaming_options(truths, listed, found)
    unpaired = _duplicates(truths, None)
    for prediction, images, match in zip(predictions, listed, matches, strict=True):
        if not match.keys:
            hint = renaming or (
                f"paths must be the same except for the suffix: {prediction.source} has {_example(images)}, "
                f"{truth_source} {_example(truths)}"
            )
            raise DataError(f"--pred {prediction.name}: no image has the name of an image of --gt\nhint: {hint}")
        if match.left_off:
            listen(Notice(f"--pred {prediction.name}: paired with --gt without {single_line(match.left_off)}"))
        unpaired += _duplicates(images, prediction.name)
        taken = set(match.keys.values())
        missing = [(key, image.name) for key, image in truths.first.items() if key not in match.keys]
        extra = [image.name for key, image in images.first.items() if key not in taken]
        reason = f"not in prediction {quoted(prediction.name)}"
        unpaired += [
            Unpaired(name, prediction.name, "unread", f"{quoted(images.unread[key])} is there, but not read")
            if key in images.unread
            else Unpaired(name, prediction.name, "missing", reason)
            for key, name in missing
        ]
        unpaired += [Unpaired(name, prediction.name, "extra", "not in the ground truth") for name in extra]
    unique = [match.unique_images(images) for images, match in zip(listed, matches, strict=True)]
    pairs = [
        Pair(truth.name, truth, tuple(images[key] for images in unique))
        for key, truth in truths.first.items()
        if key not in truths.others and all(key in images for images in unique)
    ]
    return Pairing(pairs, unpaired, list(truths.first.values()), renaming)


def _duplicates(images: Listed, prediction: str | None) -> list[Unpaired]:
    return [
        Unpaired(
            images.first[key].name, prediction, "duplicate", f"same as {', '.join(quoted(ref.name) for ref in refs)}"
        )
        for key, refs in images.others.items()
    ]


def _example(images: Listed) -> str:
    return quoted(next(iter(images.first.values())).name)
