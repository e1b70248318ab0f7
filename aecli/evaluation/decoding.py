"""The images of a pair become pixels of one size: of 8 bits, and unrounded ones where they have more."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aecli.configs import EvalConfig
from aecli.data.decoding.colour import Colour, parse_colour
from aecli.data.decoding.conversions import Conversion, Decoded
from aecli.data.decoding.decode import DecodeError, Pixels, decode, decode_fitted, resize
from aecli.data.decoding.limits import bands
from aecli.evaluation.made import MadePredictions
from aecli.evaluation.pairing import Pair
from aecli.evaluation.unpaired import Unpaired
from aecli.metrics.base import deep_range, to_scale


@dataclass(frozen=True)
class DecodedPair:
    """The ground truth, then each prediction, of one size (H, W).

    `decoded` are as read, but resized or cropped; `pixels` uint8 (H, W, 3), rounded where one has more bits; `values`
    the same unrounded, uint8, or of more bits from 0 to `peak`, as uint16 or float32.
    """

    decoded: list[Decoded]
    pixels: list[Pixels]
    peak: float

    @property
    def values(self) -> list[NDArray[Any]]:
        """Each image's unrounded values."""
        return [each.pixels for each in self.decoded]

    @property
    def depths(self) -> tuple[str, ...]:
        """The type of each image's values."""
        return tuple(str(values.dtype) for values in self.values)

    @property
    def is_deep(self) -> bool:
        """Whether one has more than 8 bits."""
        return any(values.dtype != np.uint8 for values in self.values)

    def has_equal_values(self, column: int) -> bool:
        """Whether the values of an image, not rounded, are those of the ground truth."""
        truth, other = self.values[0], self.values[column]
        if truth.dtype == other.dtype:
            return np.array_equal(truth, other)
        return all(
            np.array_equal(to_scale(truth[rows], self.peak), to_scale(other[rows], self.peak))
            for rows in bands(*truth.shape[:2])
        )


@dataclass(frozen=True)
class PairDecoder:
    """Decodes pairs as an evaluation asks for: `peak` is the highest value of images of more than 8 bits.

    Predictions that are `made` come after those of a pair.
    """

    background: Colour
    peak: float
    image_size: int | None
    fit: str
    made: MadePredictions | None = None

    @classmethod
    def of(cls, config: EvalConfig, made: MadePredictions | None = None) -> "PairDecoder":
        """Return the decoder for a command's options."""
        return cls(parse_colour(config.truth_background), deep_range(config), config.image_size, config.truth_fit, made)

    def decode(self, pair: Pair, names: Sequence[str]) -> DecodedPair | Unpaired:
        """Decode a pair; or return the image that can't be decoded.

        `names` are those of the predictions, first of those that are read.
        """
        images: list[Decoded] = []
        others: list[Decoded] = []
        for column, (name, image) in enumerate(zip((None, *names), pair.images, strict=False)):
            try:
                if column == 0 and self.made is not None:
                    decoded, others = self._read_made(pair, self.made)
                else:
                    decoded = self._decode(pair, column)
            except DecodeError as error:
                return Unpaired(image.name, name, "unreadable", error.reason)
            if decoded.pixels.shape[:2] != pair.size:
                return Unpaired(image.name, name, "unreadable", "its size is not the one that its header states")
            images.append(decoded)
        images += others
        return DecodedPair(images, [_rounded(each.pixels, self.peak) for each in images], self.peak)

    def _read_made(self, pair: Pair, made: MadePredictions) -> tuple[Decoded, list[Decoded]]:
        """Return the ground truth, read again only for the bits that models don't take, and what is made of it."""
        truth, predictions = made.read(pair.truth)
        if Conversion.DEPTH in truth.conversions and not pair.resized[0]:
            truth = self._decode(pair, 0)
        else:
            truth = _cut(truth, pair)
        return truth, [_cut(each, pair) for each in predictions]

    def _decode(self, pair: Pair, column: int) -> Decoded:
        image, resizes = pair.images[column], pair.resized[column]
        if column == 0 and resizes:
            assert self.image_size is not None  # for the type checker: nothing else resizes a ground truth
            decoded = decode_fitted(image, self.image_size, self.fit, self.background)
        else:
            decoded = decode(image, self.background, full_depth=not resizes)
            if resizes:
                decoded = replace(decoded, pixels=resize(decoded.pixels, *pair.size, method="bicubic"))
        return _cut(decoded, pair)


def _cut(decoded: Decoded, pair: Pair) -> Decoded:
    """Cut an image to the size of a pair that is cropped."""
    if not pair.cropped:
        return decoded
    height, width = pair.size
    return replace(decoded, pixels=np.ascontiguousarray(decoded.pixels[:height, :width]))


def _rounded(pixels: NDArray[Any], peak: float) -> Pixels:
    """Round pixels to 8 bits, in bands."""
    if pixels.dtype == np.uint8:
        return pixels
    rounded = np.empty(pixels.shape, dtype=np.uint8)
    for rows in bands(*pixels.shape[:2]):
        rounded[rows] = np.rint(to_scale(pixels[rows], peak).clip(0, 255))
    return rounded
