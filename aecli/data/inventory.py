"""What a source holds, by name and size, and how that differs from what it held: its path is no part of it."""

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from aecli.data.image_ref import ImageRef, names_and_sizes
from aecli.data.sources.registry import list_images
from aecli.data.sources.shards import is_pattern, is_stream, shard_sizes
from aecli.errors import name_examples
from aecli.progress import Listener, ignore
from aecli.storage.fingerprints import fingerprint_of

Inventory = Mapping[str, str]  # name of an image or shard -> its size in bytes, as text


@dataclass(frozen=True)
class Listing:
    """What the SOURCE `source` holds: `images`, or None for shards; `inventory` is None for remote shards."""

    source: str
    images: list[ImageRef] | None
    inventory: Inventory | None

    @cached_property
    def fingerprint(self) -> str | None:
        """SHA-256 of the names and sizes, as 64 hex digits; None for remote shards, which are not opened."""
        return None if self.inventory is None else fingerprint_of(self.inventory.items())

    def named_as(self, fingerprint: str, known: Inventory | None) -> "Listing":
        """Return it with the folder above all images that the inventory `known`, of that `fingerprint`, has there.

        So `photos/a.png` of a zip and `a.png` of the folder that was zipped have one name, by which they are split. The
        names stay where others fit no better. Without `known`, names without a common folder are tried.
        """
        if self.images is None or self.fingerprint == fingerprint:
            return self
        top = top_folder(known or ())
        present = top_folder(self.inventory or ())
        if top == present:
            return self
        images = [image.renamed(top + image.name.removeprefix(present)) for image in self.images]
        renamed = Listing(self.source, images, dict(names_and_sizes(images)))
        if known is None:
            return renamed if renamed.fingerprint == fingerprint else self
        return max((self, renamed), key=lambda each: compare_inventories(known, each.inventory or {}).kept)


def list_source(source: str, listen: Listener = ignore, outputs: Sequence[Path] = (), streams: bool = False) -> Listing:
    """List the images of a SOURCE (see `list_images`); where it `streams`, its shards, which are not opened.

    Raises:
        DataError: as `list_images`.
    """
    if streams and is_stream(source):
        return Listing(source, None, shard_sizes(source) if is_pattern(source) else None)
    images = list_images(source, listen, outputs)
    return Listing(source, images, dict(names_and_sizes(images)))


def top_folder(names: Iterable[str]) -> str:
    """Return the folder that all names lie in, with a final `/`; empty where there is none."""
    folders = {posixpath.dirname(name) for name in names}
    common = posixpath.commonpath(folders) if folders and "" not in folders else ""
    return f"{common}/" if common else ""


@dataclass(frozen=True)
class InventoryChange:
    """Names that were added, removed, or have another size; and how many are as they were."""

    added: Sequence[str]
    removed: Sequence[str]
    resized: Sequence[str]
    kept: int

    @property
    def is_most(self) -> bool:
        """Whether of all names, then and now, more differ than not: it is another data set."""
        return self.kept < len(self.added) + len(self.removed) + len(self.resized)

    def __str__(self) -> str:
        """Counts, each with up to three names: `2 added (c.png, d.png), 1 taken away (a.png)`."""
        kinds = {"added": self.added, "taken away": self.removed, "of another size": self.resized}
        return ", ".join(
            f"{len(names):,} {kind} ({name_examples(names, len(names))})" for kind, names in kinds.items() if names
        )


def compare_inventories(before: Inventory, now: Inventory) -> InventoryChange:
    """Return how `now` differs from `before`."""
    both = before.keys() & now.keys()
    resized = sorted(name for name in both if before[name] != now[name])
    return InventoryChange(sorted(now.keys() - both), sorted(before.keys() - both), resized, len(both) - len(resized))
