"""The images of a pair become pixels of one size: of 8 bits, and unrounded ones where they have more."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aecli.configs import EvalConfig
from aecli.data.decoding.colour import Colour, parse_colour
from aecli.data.decoding.conversions import Decoded
from aecli.data.decoding.decode import DecodeError, Pixels, decode, decode_fitted, resize
from aecli.data.decoding.wide import PEAK
from aecli.evaluation.pairing import Pair
from aecli.evaluation.unpaired import Unpaired


@dataclass(frozen=True)
class DecodedPair:
    """The ground truth, then each prediction, of one size (H, W).

    `decoded` are as read, but resized or cropped; `pixels` uint8 (H, W, 3); `values` float64 (H, W, 3) from 0 to 255,
    unrounded, None where all have 8 bits.
    """

    decoded: list[Decoded]
    pixels: list[Pixels]
    values: list[NDArray[np.float64]] | None


@dataclass(frozen=True)
class PairDecoder:
    """Decodes pairs as an evaluation asks for: `peak` is the highest value of images of more than 8 bits."""

    background: Colour
    peak: int
    image_size: int | None
    fit: str

    @classmethod
    def of(cls, config: EvalConfig) -> "PairDecoder":
        """Return the decoder for a command's options."""
        return cls(parse_colour(config.background), config.data_range or PEAK, config.image_size, config.fit)

    def decode(self, pair: Pair, names: Sequence[str]) -> DecodedPair | Unpaired:
        """Decode a pair; or return the image that can't be decoded. `names` are those of the predictions."""
        images: list[Decoded] = []
        for column, (name, image) in enumerate(zip((None, *names), pair.images, strict=True)):
            try:
                decoded = self._decode(pair, column)
            except DecodeError as error:
                return Unpaired(image.name, name, "unreadable", error.reason)
            if decoded.pixels.shape[:2] != pair.size:
                return Unpaired(image.name, name, "unreadable", "its size is not the one that its header states")
            images.append(decoded)
        if all(each.pixels.dtype == np.uint8 for each in images):
            return DecodedPair(images, [each.pixels for each in images], None)
        values = [scaled(each.pixels, self.peak) for each in images]
        rounded = [
            each.pixels if each.pixels.dtype == np.uint8 else np.rint(np.clip(value, 0, 255)).astype(np.uint8)
            for each, value in zip(images, values, strict=True)
        ]
        return DecodedPair(images, rounded, values)

    def _decode(self, pair: Pair, column: int) -> Decoded:
        image, resizes = pair.images[column], pair.resized[column]
        if column == 0 and resizes:
            assert self.image_size is not None  # for the type checker: nothing else resizes a ground truth
            decoded = decode_fitted(image, self.image_size, self.fit, self.background)
        else:
            decoded = decode(image, self.background, full_depth=not resizes)
            if resizes:
                decoded = replace(decoded, pixels=resize(decoded.pixels, *pair.size, method="bicubic"))
        if pair.cropped:
            height, width = pair.size
            decoded = replace(decoded, pixels=np.ascontiguousarray(decoded.pixels[:height, :width]))
        return decoded


def scaled(pixels: NDArray[Any], peak: int) -> NDArray[np.float64]:
    """Bring pixels to 0..255 as float64, without rounding: those of more than 8 bits are from 0 to `peak`."""
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float64)
    return pixels.astype(np.float64) * 255 / peak
