"""A run's config.json. The format is open: unknown keys are ignored, absent ones take a default."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aecli.configs.checks import LARGEST_SIDE, TRAINING_FITS, is_colour
from aecli.configs.train import OLD_NAMES, train_options
from aecli.storage.schema import Schema, checked, is_object, is_text, nested, optional
from aecli.storage.strict_json import is_count, is_number


@dataclass(frozen=True)
class ModelRecord(Schema):
    """The model by its registry name or `package.module:Class`, and its resolved options."""

    name: str = checked(lambda name: is_text(name) and name.isprintable())
    options: dict[str, Any] = checked(is_object)


@dataclass(frozen=True)
class OptionsRecord(Schema):
    """Those of train's options that other commands use; the others are compared when training resumes."""

    data: str = checked(is_text)
    val_data: str | None = checked(optional(is_text), None)
    val_fraction: float = checked(lambda fraction: is_number(fraction) and 0 <= fraction < 1, 0.1)
    image_size: int = checked(lambda size: is_count(size) and 0 < size <= LARGEST_SIDE, 256)
    fit: str = checked(lambda fit: fit in TRAINING_FITS, "squash")
    background: str = checked(is_colour, "white")
    epochs: int = checked(is_count, 1000)
    options: dict[str, Any] | None = checked(optional(is_object), None)


@dataclass(frozen=True)
class SourceRecord(Schema):
    """What a source held: so many images, or a stream's shards."""

    fingerprint: str = checked(is_text)
    images: int | None = checked(optional(is_count), None)
    shards: int | None = checked(optional(is_count), None)


@dataclass(frozen=True)
class PlacementRecord(Schema):
    """Where the run was last trained."""

    device: str = checked(is_text, "")
    compile: bool = checked(lambda compiled: isinstance(compiled, bool), False)


@dataclass(frozen=True)
class ConfigRecord(Schema):
    """What is read of a config.json."""

    model: ModelRecord = nested(ModelRecord)
    options: OptionsRecord = nested(OptionsRecord)
    data: SourceRecord = nested(SourceRecord)
    val_data: SourceRecord | None = nested(SourceRecord, None)
    placement: PlacementRecord = nested(PlacementRecord, PlacementRecord())
    began: str = checked(is_text, "")


def complete_config(document: dict[str, Any]) -> dict[str, Any]:
    """Return a config.json, validated, with its defaults where an older aecli didn't write a key.

    Raises:
        ValueError: `invalid fields: a, b.c`.
    """
    record = ConfigRecord.from_document(document)
    placement = {"device": record.placement.device, "compile": record.placement.compile}
    return {
        "val_data": None,
        "began": record.began,
        **document,
        "options": _complete_options(document["options"]),
        "data": {"images": None, "shards": None} | document["data"],
        "placement": placement | document.get("placement", {}),
    }


def _complete_options(recorded: dict[str, Any]) -> dict[str, Any]:
    """Return train's options under their names of today, with the defaults of those that an older aecli didn't have."""
    defaults = {each.name: str(each.default) if isinstance(each.default, Path) else each.default
                for each in train_options()}  # fmt: skip
    return {**defaults, "options": {}, **{OLD_NAMES.get(name, name): value for name, value in recorded.items()}}
