"""What decoding did to an image, or left undone: counted for each source, so that nothing is converted in silence."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Flag, auto
from typing import Any, Self

from numpy.typing import NDArray

from aecli.errors import EXAMPLES, count_of, name_examples

_NEAR_PEAK = 65536 // 4  # 16-bit files without a value above this probably hold fewer bits


class Conversion(Flag):
    """Kinds of what happens to an image on the way to 8-bit sRGB pixels."""

    BACKGROUND = auto()  # transparency composited over the background
    TRANSPARENT = auto()  # wholly transparent: the background is all that is left
    DEPTH = auto()  # more than 8 bits a sample
    ORIENTATION = auto()  # turned or mirrored as EXIF says
    FRAMES = auto()  # only the first of several frames or pages
    PROFILE = auto()  # a colour profile other than sRGB, which is not applied
    GREY = auto()  # one channel, repeated three times

    @property
    def key(self) -> str:
        """Its name in JSON."""
        return str(self.name).lower()


@dataclass(frozen=True, slots=True)
class Decoded:
    """Pixels (H, W, 3), and what was done to get them.

    `pixels` are uint8; at full depth, an image of more than 8 bits has uint16 or float32 from 0 to 65535. `frames` is
    the number of frames, 0 for several that were not counted; `peak` the highest value of more than 8 bits, else 0;
    `profile` the SHA-256 of a colour profile that is not sRGB, else empty.
    """

    pixels: NDArray[Any]
    conversions: Conversion = Conversion(0)
    frames: int = 1
    peak: int = 0
    profile: str = ""


@dataclass
class _Count:
    images: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, images: int, names: list[str]) -> None:
        self.images += images
        self.names = (self.names + names)[:EXAMPLES]


@dataclass
class ConversionCounts:
    """How many images of a source were converted, by kind, and the names of the first of each kind."""

    images: int = 0
    kinds: dict[Conversion, _Count] = field(default_factory=dict)
    frames: int = 0  # the most of an image; 0 where they were not counted
    peak: int = 0

    def add(self, name: str, decoded: Decoded) -> None:
        """Count an image."""
        self.images += 1
        for kind in decoded.conversions:
            self.kinds.setdefault(kind, _Count()).add(1, [name])
        if Conversion.FRAMES in decoded.conversions:
            self.frames = max(self.frames, decoded.frames)
        self.peak = max(self.peak, decoded.peak)

    def update(self, other: Self) -> None:
        """Add what was counted elsewhere."""
        self.images += other.images
        for kind, count in other.kinds.items():
            self.kinds.setdefault(kind, _Count()).add(count.images, count.names)
        self.frames, self.peak = max(self.frames, other.frames), max(self.peak, other.peak)

    def notices(self, source: str, background: str, keeps_depth: bool = False) -> Iterator[str]:
        """Yield a line for each kind: what was done, to how many images, and up to three of their names."""
        counted = {kind: count for kind in Conversion if (count := self.kinds.get(kind))}
        if counted.get(Conversion.GREY, _Count()).images == self.images:
            counted.pop(Conversion.GREY, None)  # all grey: there is no colour among which they would stand out
        if keeps_depth:
            counted.pop(Conversion.DEPTH, None)
        frames = f"{self.frames} frames" if self.frames > 1 else "several frames"
        texts = {
            Conversion.BACKGROUND: f"with transparency laid over {background} (--background)",
            Conversion.TRANSPARENT: f"wholly transparent: nothing but the background ({background}) is left of them",
            Conversion.DEPTH: "of more than 8 bits reduced to 8",
            Conversion.ORIENTATION: "turned as their EXIF orientation says",
            Conversion.FRAMES: f"of which only the first of {frames} is read",
            Conversion.PROFILE: "with a colour profile other than sRGB, which is not applied "
            "(to convert: magick IN -profile sRGB.icc OUT)",
            Conversion.GREY: "grey among colour images",
        }
        for kind, count in counted.items():
            images, names = count_of(count.images, "image"), name_examples(count.names, count.images)
            yield f"{source}: {images} {texts[kind]}: {names}"
        if 0 < self.peak < _NEAR_PEAK:
            yield (
                f"{source}: no value above {self.peak:,} of 65,535 in images of more than 8 bits, which are therefore "
                f"nearly black (--data-range {2 ** self.peak.bit_length() - 1} of eval names their peak)"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the counts and names by kind."""
        found: dict[str, Any] = {
            kind.key: {"images": count.images, "names": count.names} for kind, count in self.kinds.items()
        }
        if Conversion.FRAMES in self.kinds:
            found[Conversion.FRAMES.key]["frames"] = self.frames or None
        if self.peak:
            found[Conversion.DEPTH.key]["peak"] = self.peak
        return found

    @classmethod
    def from_json(cls, document: Any, images: int) -> Self:
        """Read what `to_json` wrote of so many images; what is not as written there counts as nothing."""
        counts = cls(images)
        for kind in Conversion:
            found = document.get(kind.key) if isinstance(document, Mapping) else None
            if isinstance(found, Mapping) and isinstance(found.get("images"), int):
                names = found.get("names")
                counts.kinds[kind] = _Count(found["images"], list(map(str, names)) if isinstance(names, list) else [])
                counts.frames = max(counts.frames, found.get("frames") or 0)
                counts.peak = max(counts.peak, found.get("peak") or 0)
        return counts


def is_srgb(profile: bytes) -> bool:
    """Whether an ICC profile calls itself sRGB, in its ASCII or its UTF-16 description."""
    return b"sRGB" in profile or "sRGB".encode("utf-16-be") in profile


def as_kinds(flags: Mapping[Conversion, Any]) -> Conversion:
    """Return the kinds whose flag is true."""
    kinds = Conversion(0)
    for kind, is_set in flags.items():
        if is_set:
            kinds |= kind
    return kinds
