"""Images given in Python in place of a SOURCE: which are taken, and what they are called.

Only the standard library, as everywhere here: an object of NumPy, Pillow or PyTorch comes from a module that is loaded.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from aecli.errors import ConfigError, count_of, message_of

PYTHON = "python"  # the prefix that stands for such images where sources are recorded
EXPECTED = (
    "a source, an array uint8 (N, H, W, 3) or (N, H, W), a tensor uint8 (N, 3, H, W), a list of pictures or of paths, "
    "or a Dataset of pictures"
)
_PICTURE = "a PIL image, an array uint8 (H, W, 3) or (H, W), or a tensor uint8 (3, H, W)"
_CHANNELS = (1, 3)


class GivenImages(str):
    """A SOURCE that holds its images. As text it is `python:` and a description, which is what a run records of it.

    Sources are text wherever they are compared, recorded or named in a message; only listing looks at `content`: a
    stack of pictures, a list of them or of paths, or a Dataset; or references to these, once they were listed.
    """

    content: Any
    name: str  # of a prediction

    def __new__(cls, description: str, content: Any, name: str = "") -> "GivenImages":
        """Describe `content`, which is kept as it is and not copied."""
        source = super().__new__(cls, f"{PYTHON}:{name and f'{name}, '}{description}")
        source.content, source.name = content, name
        return source

    @property
    def description(self) -> str:
        """What the images are, without the prefix."""
        return self.partition(":")[2]


def is_array(value: object) -> bool:
    """Whether a value is a NumPy array."""
    return _is_of(value, "numpy", "ndarray")


def is_tensor(value: object) -> bool:
    """Whether a value is a PyTorch tensor."""
    return _is_of(value, "torch", "Tensor")


def is_path(value: object) -> bool:
    """Whether a value is text or a path."""
    return isinstance(value, str | os.PathLike)


def given_images(flag: str, value: Any) -> GivenImages:
    """Return images given in Python as a source.

    Raises:
        ConfigError: they are of another kind, shape or dtype; the message names `flag` and what is expected.
    """
    if is_array(value) or is_tensor(value):
        if problem := _stack_problem(value):
            raise ConfigError(f"{flag} {problem}")
        kind = "array" if is_array(value) else "tensor"
        sides = value.shape[2:] if is_tensor(value) and value.ndim == 4 else value.shape[1:3]
        return GivenImages(f"{kind} of {count_of(len(value), 'image')} {sides[0]}×{sides[1]}", value)
    if isinstance(value, list | tuple):
        return GivenImages(_describe_list(flag, value), tuple(value))
    if isinstance(value, Mapping | bytes | bytearray) or not hasattr(value, "__getitem__"):
        raise ConfigError(f"{flag} {_brief(value)}: expected {EXPECTED}")
    name = type(value).__name__
    try:
        count = len(value)
    except (TypeError, NotImplementedError) as error:
        raise ConfigError(f"{flag} {name}: expected a map-style Dataset, which has a length") from error
    if count == 0:
        raise ConfigError(f"{flag} {name}: holds no images")
    return GivenImages(f"{name} of {count_of(count, 'image')}", value)


def named_images(flag: str, name: str, value: Any) -> str:
    """Return a prediction called `name`, `NAME=SOURCE` or images; raises ConfigError as `given_images`."""
    if is_path(value):
        return f"{name}={os.fsdecode(value)}"
    source = given_images(flag, value)
    return GivenImages(source.description, source.content, name)


def _describe_list(flag: str, values: Sequence[Any]) -> str:
    if not values:
        raise ConfigError(f"{flag} []: holds no images")
    if all(map(is_path, values)):
        return f"list of {count_of(len(values), 'path')}"
    for index, value in enumerate(values):
        if problem := picture_problem(value):
            raise ConfigError(f"{flag}: item {index}, {problem}")
    return f"list of {count_of(len(values), 'picture')}"


def picture_problem(value: Any) -> str:
    """Return why a value is no picture, with what is expected, or "" if it is one."""
    if _is_of(value, "PIL.Image", "Image"):
        return ""
    if not is_array(value) and not is_tensor(value):
        return f"{_brief(value)}: expected {_PICTURE}"
    if not _is_uint8(value):
        return _dtype_problem(value)
    channels = value.shape[0 if is_tensor(value) else -1] if value.ndim == 3 else 1
    if value.ndim not in (2, 3) or channels not in _CHANNELS or 0 in value.shape:
        return f"{_describe(value)}: expected {_PICTURE}"
    return ""


def _stack_problem(value: Any) -> str:
    """Return why an array or tensor is no stack of pictures, or "" if it is one."""
    if not _is_uint8(value):
        return _dtype_problem(value)
    shape = tuple(value.shape)
    expected, axis, other, call = "(N, H, W, 3) or (N, H, W)", -1, 1, "transpose(0, 2, 3, 1)"
    if is_tensor(value):
        expected, axis, other, call = "(N, 3, H, W) or (N, H, W)", 1, -1, "permute(0, 3, 1, 2)"
    hint = ""
    if len(shape) == 3 and shape[axis if axis < 0 else 0] == 3:
        hint = "\nhint: a single image? x[None] makes a stack of it"
    elif len(shape) == 4 and shape[axis] not in _CHANNELS and shape[other] in _CHANNELS:
        hint = f"\nhint: x.{call}"
    elif 0 not in shape and (len(shape) == 3 or (len(shape) == 4 and shape[axis] in _CHANNELS)):
        return ""
    return f"{_describe(value)}: expected {expected}{hint}"


def _is_uint8(value: Any) -> bool:
    return str(value.dtype).removeprefix("torch.") == "uint8"


def _dtype_problem(value: Any) -> str:
    cast = "to(torch.uint8)" if is_tensor(value) else "astype('uint8')"
    if "float" in str(value.dtype):
        way = f"values in [0, 1]: (x * 255).round().{cast}; in [-1, 1]: ((x + 1) * 127.5).round().{cast}"
    else:
        way = f"values from 0 to 255: x.{cast}"
    return f"{_describe(value)}: expected uint8, from 0 to 255\nhint: {way}"


def _describe(value: Any) -> str:
    """Return kind, dtype and shape: `array float32 (40, 32, 32, 3)`."""
    kind = "array" if is_array(value) else "tensor"
    return f"{kind} {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def _brief(value: object) -> str:
    """Return a number's or text's repr, and of anything else the type: its repr may be long."""
    is_brief = isinstance(value, str | float | None) or (isinstance(value, int) and value.bit_length() <= 64)
    return message_of(repr(value)) if is_brief else f"of type {type(value).__name__}"


def _is_of(value: object, module: str, name: str) -> bool:
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(value, kind)
