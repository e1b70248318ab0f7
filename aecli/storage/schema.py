"""JSON objects as frozen dataclasses: unknown keys are ignored, absent ones take the field's default."""

from collections.abc import Callable
from dataclasses import MISSING, Field, field, fields
from typing import Any, Self


def checked(check: Callable[[Any], bool], default: Any = MISSING) -> Any:
    """Return a dataclass field whose value in a document must pass `check`; required where it has no default."""
    metadata = {"check": check}
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


def nested(schema: type["Schema"], default: Any = MISSING) -> Any:
    """Return a dataclass field that holds an object of `schema`, or null where that is its default."""
    metadata = {"schema": schema}
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


class Schema:
    """Base of frozen dataclasses whose fields are made by `checked` and `nested`."""

    @classmethod
    def from_document(cls, document: Any) -> Self:
        """Build it from a JSON object.

        Raises:
            ValueError: `invalid fields: a, b.c`, or not a JSON object.
        """
        if not isinstance(document, dict):
            raise ValueError("not a JSON object")
        declared: tuple[Field[Any], ...] = fields(cls)  # type: ignore[arg-type]
        if invalid := [name for each in declared for name in _invalid(each, document)]:
            raise ValueError(f"invalid fields: {', '.join(invalid)}")
        return cls(**{each.name: _value(each, document[each.name]) for each in declared if each.name in document})


def _invalid(declared: Field[Any], document: dict[str, Any]) -> list[str]:
    """Return the field's name, or those in it, where its value is invalid or it is required and absent."""
    name = declared.name
    if name not in document:
        return [name] if declared.default is MISSING else []
    value, schema = document[name], declared.metadata.get("schema")
    if schema is None:
        return [] if declared.metadata["check"](value) else [name]
    if value is None and declared.default is None:
        return []
    if not isinstance(value, dict):
        return [name]
    return [f"{name}.{inner}" for each in fields(schema) for inner in _invalid(each, value)]


def _value(declared: Field[Any], value: Any) -> Any:
    schema = declared.metadata.get("schema")
    return value if schema is None or value is None else schema.from_document(value)


def is_text(value: object) -> bool:
    """Whether `value` is a string."""
    return isinstance(value, str)


def is_object(value: object) -> bool:
    """Whether `value` is a JSON object."""
    return isinstance(value, dict)


def optional(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return a check that accepts null too."""
    return lambda value: value is None or check(value)
