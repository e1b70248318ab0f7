"""JSON objects as frozen dataclasses: unknown keys are ignored, absent ones take the field's default."""

from collections.abc import Callable
from dataclasses import MISSING, Field, field, fields
from typing import Any, Self


class InvalidFieldsError(ValueError):
    """Fields of a JSON object, by name, that are absent, of a wrong type or out of range."""

    def __init__(self, names: list[str]) -> None:
        """Make the message: `invalid fields: a, b.c`."""
        super().__init__(f"invalid fields: {', '.join(names)}")
        self.names = names


def parsed(read: Callable[[Any], Any], default: Any = MISSING, factory: Any = MISSING, key: str | None = None) -> Any:
    """Return a dataclass field whose value `read` makes of the document's; it raises ValueError for an invalid one.

    `key` is its name in the document, where that is another. Without a default, the field is required.
    """
    return field(default=default, default_factory=factory, metadata={"read": read, "key": key, "nested": False})


def checked(
    check: Callable[[Any], bool], default: Any = MISSING, factory: Any = MISSING, key: str | None = None
) -> Any:
    """Return a dataclass field whose value in a document must pass `check`, and is kept as it is."""

    def read(value: Any) -> Any:
        if not check(value):
            raise ValueError
        return value

    return parsed(read, default, factory, key)


def nested(schema: type["Schema"], default: Any = MISSING) -> Any:
    """Return a dataclass field that holds an object of `schema`, or null where that is its default."""

    def read(value: Any) -> Any:
        return None if value is None and default is None else schema.from_document(value)

    return field(default=default, metadata={"read": read, "key": None, "nested": True})


class Schema:
    """Base of dataclasses whose fields are made by `checked`, `parsed` and `nested`."""

    @classmethod
    def from_document(cls, document: Any) -> Self:
        """Build it from a JSON object.

        Raises:
            InvalidFieldsError: it names those of this object, and of its nested ones.
            ValueError: it is not a JSON object.
        """
        if not isinstance(document, dict):
            raise ValueError("not a JSON object")
        values: dict[str, Any] = {}
        invalid: list[str] = []
        declared: tuple[Field[Any], ...] = fields(cls)  # type: ignore[arg-type]
        for each in declared:
            key = each.metadata["key"] or each.name
            if key not in document:
                if each.default is MISSING and each.default_factory is MISSING:
                    invalid.append(key)
                continue
            try:
                values[each.name] = each.metadata["read"](document[key])
            except ValueError as error:
                if each.metadata["nested"] and isinstance(error, InvalidFieldsError):
                    invalid += [f"{key}.{name}" for name in error.names]
                else:
                    invalid.append(key)
        if invalid:
            raise InvalidFieldsError(invalid)
        return cls(**values)


def is_text(value: object) -> bool:
    """Whether `value` is a string."""
    return isinstance(value, str)


def is_object(value: object) -> bool:
    """Whether `value` is a JSON object."""
    return isinstance(value, dict)


def is_bool(value: object) -> bool:
    """Whether `value` is true or false."""
    return isinstance(value, bool)


def list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return a check that accepts a list of what `check` does."""
    return lambda value: isinstance(value, list) and all(map(check, value))


def map_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return a check that accepts a JSON object whose values `check` does."""
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def optional(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return a check that accepts null too."""
    return lambda value: value is None or check(value)
