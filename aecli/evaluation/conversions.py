"""What reading the images of an evaluation did to them, counted for each source and for each prediction."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from aecli.data.decoding.conversions import Conversion, ConversionCounts, Decoded
from aecli.errors import DataError, count_of
from aecli.evaluation.decoding import DecodedPair


@dataclass
class PairCounts:
    """Counts of the pairs measured.

    `sources` are of the ground truth and each prediction that is read, the other lists of every prediction.
    """

    sources: list[ConversionCounts]
    deep: int = 0  # pairs measured at more than 8 bits
    rounded: list[int] = field(default_factory=list)  # identical once rounded to 8 bits, and not before
    profiles: list[int] = field(default_factory=list)  # with another colour profile than the ground truth
    transparent: list[int] = field(default_factory=list)  # wholly transparent, as the ground truth is

    @classmethod
    def of(cls, predictions: int, read: int) -> Self:
        """Return counts of nothing; the first `read` of the predictions are read, the others made of the truth."""
        zeros = [0] * predictions
        return cls([ConversionCounts() for _ in range(1 + read)], 0, zeros, zeros.copy(), zeros.copy())

    def add(self, names: Sequence[str], pair: DecodedPair) -> None:
        """Count a pair whose images, as far as they are read, have these names."""
        for name, decoded, counts in zip(names, pair.decoded, self.sources, strict=False):
            counts.add(name, decoded)
        truth, *predictions = pair.decoded
        self.deep += pair.is_deep
        for column, prediction in enumerate(predictions):
            self.profiles[column] += prediction.profile != truth.profile
            self.transparent[column] += Conversion.TRANSPARENT in truth.conversions & prediction.conversions
            self.rounded[column] += _is_rounded(pair, truth, prediction, column + 1)

    def update(self, other: Self) -> None:
        """Add what was counted elsewhere."""
        for mine, theirs in zip(self.sources, other.sources, strict=True):
            mine.update(theirs)
        self.deep += other.deep
        self.rounded, self.profiles, self.transparent = (
            [a + b for a, b in zip(mine, theirs, strict=True)]
            for mine, theirs in ((self.rounded, other.rounded), (self.profiles, other.profiles),
                                 (self.transparent, other.transparent))
        )  # fmt: skip

    def require_content(self, names: Sequence[str], pairs: int) -> None:
        """Raise DataError if nothing but the background is left of all pairs of a prediction."""
        for name, transparent in zip(names, self.transparent, strict=True):
            if transparent == pairs:
                raise DataError(
                    f"--gt and --pred {name}: wholly transparent, all {pairs:,} pairs, so there is nothing to compare\n"
                    "hint: to compare the colours behind it, save them without alpha (magick IN -alpha off OUT)"
                )

    def notices(
        self, sources: Sequence[str], names: Sequence[str], background: str, data_range: int | None
    ) -> Iterator[str]:
        """Yield a line for each kind and source, and for what differs within pairs; see `ConversionCounts.notices`."""
        reported = set()
        for source, counts in zip(sources, self.sources, strict=True):
            if source not in reported:  # it may be compared with itself
                reported.add(source)
                known = counts if data_range is None else replace(counts, peak=0)
                yield from known.notices(source, background, keeps_depth=True)
                if data_range is not None and counts.peak > data_range:
                    yield f"{source}: values up to {counts.peak:,}, which is above --data-range {data_range}"
        if data_range is not None and not self.deep:
            yield f"--data-range {data_range} changes nothing: no image has more than 8 bits"
        for counted, one, several, text in (
            (self.profiles, "has", "have", "another colour profile than their ground truth: profiles are not applied, "
             "so their colours differ by that too (to convert: magick IN -profile sRGB.icc OUT)"),
            (self.transparent, "is", "are", "as wholly transparent as their ground truth: only the background is "
             "compared"),
            (self.rounded, "is", "are", "identical at 8 bits to their ground truth, but not in what the files hold"),
        ):  # fmt: skip
            for name, images in zip(names, counted, strict=True):
                if images:
                    yield f"{name}: {count_of(images, 'image')} {one if images == 1 else several} {text}"

    def to_json(self, sources: Sequence[str]) -> dict[str, Any]:
        """Return the counts of each source."""
        return {source: counts.to_json() for source, counts in zip(sources, self.sources, strict=True)}


def _is_rounded(pair: DecodedPair, truth: Decoded, prediction: Decoded, column: int) -> bool:
    """Whether two images become identical by rounding to 8 bits, here or in their decoder."""
    if pair.is_deep:
        if pair.has_equal_values(column):
            return False
    elif Conversion.DEPTH not in truth.conversions | prediction.conversions:
        return False
    return np.array_equal(pair.pixels[0], pair.pixels[column])
