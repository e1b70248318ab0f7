"""Images that can't be measured: what is wrong with each, and the error or notice that lists them."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from aecli.errors import DataError, quoted

_EXAMPLES = 3

# The kinds in the order in which an error lists them: their description, and whether each image needs its reason.
KINDS = {
    "duplicate": ("with the same name except for the suffix", True),
    "missing": ("missing", False),
    "unread": ("in a format that is not read", True),
    "extra": ("without a ground truth", False),
    "unreadable": ("unreadable", True),
    "small": ("too small", True),
    "size": ("of a different size than the ground truth", True),
}


@dataclass(frozen=True)
class Unpaired:
    """An image that can't be measured: of `prediction`, or of the ground truth where that is None.

    `kind` is one of KINDS; `reason` explains it for this image. `size` (H, W) is set where it is the problem, and
    `truth_size` where that is another one.
    """

    name: str
    prediction: str | None
    kind: str
    reason: str
    size: tuple[int, int] = (0, 0)
    truth_size: tuple[int, int] = (0, 0)


def describe(unpaired: Sequence[Unpaired]) -> str:
    """Count the images of each kind and source, with a few of their names, in one line."""
    parts = []
    for kind, (words, explained) in KINDS.items():
        groups: dict[str | None, list[Unpaired]] = defaultdict(list)
        for each in unpaired:
            if each.kind == kind:
                groups[each.prediction].append(each)
        for prediction, members in groups.items():
            source = "--gt" if prediction is None else f"--pred {prediction}"
            examples = ", ".join(
                quoted(each.name) + (f" ({each.reason})" if explained else "") for each in members[:_EXAMPLES]
            )
            more = ", …" if len(members) > _EXAMPLES else ""
            parts.append(f"{source}: {len(members)} {words}: {examples}{more}")
    return "; ".join(parts)


def mismatch_error(unpaired: Sequence[Unpaired], ways_out: Sequence[str]) -> DataError:
    """The error for images that don't pair, with the options that measure them or the others."""
    return DataError(describe(unpaired) + _hint(ways_out))


def nothing_left_error(unpaired: Sequence[Unpaired], ways_out: Sequence[str] = ()) -> DataError:
    """The error for a comparison of which no image is left."""
    return DataError(f"no image is left to measure: {describe(unpaired)}{_hint(ways_out)}")


def _hint(ways_out: Sequence[str]) -> str:
    return "\nhint: " + "; or ".join(ways_out) if ways_out else ""
