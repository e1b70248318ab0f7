"""What makes the numbers of two evaluations comparable: how images were read and measured, and how many."""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from aecli.configs import EvalConfig
from aecli.evaluation.pairing import Pair
from aecli.metrics.base import EIGHT_BITS, Metric, deep_range

_DIGITS = 12  # of a hash, as shown


@dataclass(frozen=True)
class Protocol:
    """How `n` pairs were measured; no names and no paths. It says what was done, not which options were given.

    `image_size` and `fit` are those that the ground truth was brought to, None where it was as it is; `predictions` are
    `as they are`, `resized` to the ground truth's size or `cropped` with it to the common one. `data_range` is 255 for
    images of 8 bits, else the highest value of the unrounded ones. `weights` are SHA-256s of the metrics' networks.
    """

    n: int
    image_size: int | None
    fit: str | None
    background: str
    predictions: str
    data_range: float
    crop_border: int
    metrics: Mapping[str, str]
    weights: Mapping[str, str]

    @property
    def sha256(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of its canonical JSON."""
        content = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()[:_DIGITS]

    def to_json(self) -> dict[str, Any]:
        """Return all of it, and its hash."""
        return {"sha256": self.sha256, **asdict(self)}

    def __str__(self) -> str:
        """Its hash, and what is not in the metrics' definitions, in a line."""
        size = f"{self.image_size}x{self.image_size} by {self.fit}" if self.image_size else "as it is"
        values = "8 bits" if self.data_range == EIGHT_BITS else f"unrounded values to {self.data_range:g}"
        parts = [f"n {self.n}", f"ground truth {size}", f"background {self.background}",
                 f"predictions {self.predictions}", values]  # fmt: skip
        parts += [f"border {self.crop_border}"] if self.crop_border else []
        parts += [f"{name.removesuffix('_sha256')} {digits[:_DIGITS]}" for name, digits in self.weights.items()]
        return f"protocol {self.sha256}: {'; '.join(parts)}"


def protocol_of(
    metrics: Sequence[Metric],
    of_sets: Mapping[str, str],
    weights: Mapping[str, str],
    pairs: Collection[Pair],
    is_deep: bool,
    config: EvalConfig,
) -> Protocol:
    """Return the protocol by which pairs were measured.

    `of_sets` are the definitions of metrics of sets; `weights` identify the networks of all metrics; `is_deep` says
    whether an image had more than 8 bits.
    """
    is_fitted = any(pair.resized[0] for pair in pairs)
    is_resized = any(any(pair.resized[1:]) for pair in pairs)
    is_cropped = any(pair.cropped for pair in pairs)
    return Protocol(
        n=len(pairs),
        image_size=config.image_size if is_fitted else None,
        fit=config.truth_fit if is_fitted else None,
        background=config.truth_background,
        predictions="resized" if is_resized else "cropped" if is_cropped else "as they are",
        data_range=deep_range(config) if is_deep else EIGHT_BITS,
        crop_border=config.crop_border,
        metrics={metric.name: metric.definition for metric in metrics} | dict(of_sets),
        weights=dict(weights),
    )


def differing_fields(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the fields in which two protocols differ, as JSON, such as `metrics.ssim`; the hash is none."""
    for name in dict.fromkeys([*a, *b]):
        one, other = a.get(name), b.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from differing_fields(one, other, f"{prefix}{name}.")
        elif one != other and prefix + name != "sha256":
            yield prefix + name
