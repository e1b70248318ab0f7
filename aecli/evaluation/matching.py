"""The sources of a comparison are listed, and the keys of predictions found for those of the ground truth."""

import os
import posixpath
import shlex
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aecli.data.image_ref import ImageRef
from aecli.data.sources.registry import list_images
from aecli.data.sources.selection import Selection
from aecli.errors import single_line
from aecli.evaluation.naming import find_template, rename, shortened_keys
from aecli.progress import Listener, Notice


@dataclass(frozen=True)
class Listed:
    """The first image of each key of a source, the others of keys that have several, and files that are not read."""

    source: str
    first: dict[str, ImageRef]
    others: dict[str, list[ImageRef]]
    unread: dict[str, str]  # key -> name


@dataclass(frozen=True)
class Match:
    """The key of the prediction for each key of the ground truth that has one, what was left off, and the template."""

    keys: dict[str, str]
    left_off: str = ""
    template: str = ""

    def unique_images(self, images: Listed) -> dict[str, ImageRef]:
        """Return the image of each key of the ground truth that has exactly one."""
        return {key: images.first[found] for key, found in self.keys.items() if found not in images.others}


def list_source(source: str, sources: Sequence[str], are_files: bool, listen: Listener) -> Listed:
    """List a source without the folders in it that are other `sources`; single files have one key."""
    selection = Selection()
    images = leave_out(list_images(source, listen, selection=selection), source, sources, listen)
    first: dict[str, ImageRef] = {}
    others: dict[str, list[ImageRef]] = defaultdict(list)
    for image in images:
        key = "" if are_files else _key(image.key)
        if first.setdefault(key, image) is not image:
            others[key].append(image)
    unread = {_key(posixpath.splitext(name)[0]): name for names in selection.unread.values() for name in names}
    return Listed(source, first, dict(others), unread)


def leave_out(images: list[ImageRef], source: str, sources: Sequence[str], listen: Listener) -> list[ImageRef]:
    """Return the images of a source without those in folders that are other `sources`, unless none would be left."""
    for other in sources:
        folder = _folder_in(source, other)
        rest = [image for image in images if not image.name.startswith(folder)] if folder else images
        if 0 < len(rest) < len(images):
            count = len(images) - len(rest)
            listen(Notice(f"{source}: {count:,} images in {single_line(folder)} left out, which is {other}"))
            images = rest
    return images


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _folder_in(source: str, other: str) -> str:
    """The relative path with a `/` at its end of the folder `other` in the folder `source`; empty if it isn't there."""
    if not (os.path.isdir(source) and os.path.isdir(other)):
        return ""
    above, below = Path(source).resolve(), Path(other).resolve()
    return f"{below.relative_to(above).as_posix()}/" if above in below.parents else ""


def match_keys(truths: Listed, images: Listed, templates: Sequence[str]) -> Match:
    """Find the prediction's keys: the first way in which all pair, else the one in which most do."""
    suffixes = {key: posixpath.splitext(image.name)[1] for key, image in truths.first.items()}
    best = Match({})
    for template in (*templates, "{}"):
        for truth_part, shorter_truths in shortened_keys(truths.source, truths.first):
            for part, shorter in shortened_keys(images.source, images.first):
                found = {
                    key: shorter[named]
                    for short, key in shorter_truths.items()
                    if (named := rename(template, short, suffixes[key])) in shorter
                }
                if len(found) > len(best.keys):
                    left_off = " and ".join(filter(None, (part, truth_part and f"{truth_part} of --gt")))
                    best = Match(found, left_off, template)
                if len(found) in (len(truths.first), len(images.first)):
                    return best
    return best


def find_renaming(truths: Listed, images: Listed, match: Match) -> tuple[str, int]:
    """A template by which more images pair than do, and their number; see `find_template`."""
    if len(match.keys) in (len(truths.first), len(images.first)):
        return "", 0
    suffixes = {key: posixpath.splitext(image.name)[1] for key, image in truths.first.items()}
    for _, shorter_truths in shortened_keys(truths.source, truths.first):
        for _, shorter in shortened_keys(images.source, images.first):
            template, hits = find_template({short: suffixes[key] for short, key in shorter_truths.items()}, shorter)
            if hits > len(match.keys):
                return template, hits
    return "", 0


def renaming_options(truths: Listed, listed: Sequence[Listed], found: Sequence[tuple[str, int]]) -> str:
    """The options that name predictions as they are named, if that was found out for any."""
    templates = dict.fromkeys(template for template, _ in found if template)
    if not templates:
        return ""
    options = " ".join(f"--pred-name {shlex.quote(template)}" for template in templates)
    is_whole = all(
        hits == len(truths.first) == len(images.first)
        for (template, hits), images in zip(found, listed, strict=True)
        if template
    )
    return f"{options} pairs them" if is_whole else f"{options} --on-mismatch skip pairs most of them"
