"""How the images of a source differ from those that a run was trained on. What decides is not where they lie."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aecli.data.inventory import Listing, compare_inventories
from aecli.data.sources.registry import is_gone
from aecli.errors import single_line
from aecli.runs.folder import RunFolder

SOURCES = ("data", "val_data")


@dataclass(frozen=True)
class SourceChange:
    """How one source of a run, `was`, differs from `now`: both as resolved options.

    `is_other`: it is another data set. `difference` is the difference in words, empty where there is none or it is not
    known; `counts` are its figures for config.json.
    """

    key: str
    was: str
    now: str
    is_other: bool = False
    difference: str = ""
    counts: Mapping[str, int] | None = None

    @property
    def flag(self) -> str:
        """The option that names the source."""
        return "--" + self.key.replace("_", "-")

    @property
    def is_moved(self) -> bool:
        """Whether the source has another name than when the run last trained."""
        return self.was != self.now

    @property
    def may_follow(self) -> bool:
        """Whether a run may be found again by these images without being named.

        They are its images, wherever they lie now; or most of them, at their old place or where that is gone.
        """
        if self.is_other:
            return False
        return not (self.difference and self.is_moved) or is_gone(self.was)


def source_changes(
    folder: RunFolder, recorded: Mapping[str, Any], now: Mapping[str, Any], listings: Mapping[str, Listing]
) -> list[SourceChange]:
    """Compare the sources of `listings` (data, val_data), whose resolved options are `now`, with those of a run.

    `recorded` is the run's config.json, which has the same sources.
    """
    return [_change(folder, key, recorded, str(now[key]), listing) for key, listing in listings.items()]


def _change(folder: RunFolder, key: str, recorded: Mapping[str, Any], now: str, listing: Listing) -> SourceChange:
    was, record = str(recorded["options"][key]), recorded.get(key) or {}
    is_same_kind = os.path.isabs(was) == os.path.isabs(now) and (record.get("images") is None) == (
        listing.images is None
    )
    if not is_same_kind or (was != now and not os.path.isabs(now)):
        return SourceChange(key, was, now, is_other=True)
    if listing.inventory is None:  # remote shards, which are compared once they are opened
        return SourceChange(key, was, now)
    listing = as_recorded(folder, recorded, key, listing)
    if listing.fingerprint == record.get("fingerprint"):
        return SourceChange(key, was, now)
    if (known := folder.read_images().get(key)) is not None:
        change = compare_inventories(known, listing.inventory or {})
        counts = {"added": len(change.added), "removed": len(change.removed), "resized": len(change.resized)}
        return SourceChange(key, was, now, change.is_most, str(change), counts)
    then = record["shards" if record.get("images") is None else "images"] or 0
    count = len(listing.inventory or {})
    is_other = was != now or 2 * min(then, count) < max(then, count)
    return SourceChange(key, was, now, is_other, f"{then} then, {count} now", {"then": then, "now": count})


def as_recorded(folder: RunFolder, recorded: Mapping[str, Any], key: str, listing: Listing) -> Listing:
    """Return a listing whose images have the names under which the run knows them, by which it splits them."""
    fingerprint = (recorded.get(key) or {}).get("fingerprint")
    if listing.images is None or listing.fingerprint == fingerprint:
        return listing
    return listing.named_as(str(fingerprint), folder.read_images().get(key))


def notices_of(changes: Iterable[SourceChange]) -> Iterator[str]:
    """Yield what a user is to know of each change."""
    for each in changes:
        if each.difference:
            yield f"{each.flag} {each.now}: the images have changed since the run last trained: {each.difference}"
        elif each.is_moved:
            yield f"{each.flag} {each.now}: the images that the run had in {single_line(each.was)}"
