"""Images and sources that must be read, or refused."""

from collections.abc import Generator
from typing import Any, TypeVar

import pytest

from aecli.data.decoding.decode import DecodeError, decode
from aecli.data.image_ref import ImageRef
from aecli.data.sources.registry import list_images
from aecli.errors import DataError

Result = TypeVar("Result")


def image_ref(content, name="folder/a [1].png"):
    return ImageRef(name, name, "", lambda: content)


def fail_to_decode(content, *words):
    with pytest.raises(DecodeError) as caught:
        decode(image_ref(content))
    assert isinstance(caught.value, DataError)
    assert caught.value.name == "folder/a [1].png"
    assert str(caught.value) == f"folder/a [1].png: {caught.value.reason}"
    assert "\n" not in caught.value.reason
    for word in words:
        assert word in caught.value.reason
    return caught.value


def names(source):
    return [image.name for image in list_images(str(source))]


def fail_to_list(source, *words):
    with pytest.raises(DataError) as caught:
        list_images(str(source))
    message = str(caught.value)
    problem, *hints = message.split("\n")
    assert str(source) in problem
    assert len(hints) <= 1 and all(hint.startswith("hint: ") for hint in hints)
    for word in words:
        assert word in message
    return message


def finish(steps: Generator[Any, None, Result]) -> tuple[Result, list[Any]]:
    """Run a generator to its end: what it returns, and what it yielded."""
    reports = []
    while True:
        try:
            reports.append(next(steps))
        except StopIteration as end:
            return end.value, reports
