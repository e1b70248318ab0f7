"""Calls into Pillow on an encoded image: what it raises for a damaged one becomes an ImageError, and nothing else does.

Only Pillow's own functions are called through here, so that a bug of ours is never reported as a damaged image.
"""

import struct
import zlib
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from PIL import Image

from aecli.errors import single_line

P = ParamSpec("P")
Result = TypeVar("Result")

# What comes out of Pillow's readers when a damaged header or tag has a type or value that they did not expect.
_UNEXPECTED = (struct.error, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError)
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    RuntimeError,
    Image.DecompressionBombError,
    zlib.error,
    *_UNEXPECTED,
)


class ImageError(Exception):
    """An image that is damaged, unsupported or too large; its message says why, in one printable line."""


def call_pillow(function: Callable[P, Result], *arguments: P.args, **options: P.kwargs) -> Result:
    """Return what a function of Pillow's returns; raises ImageError where it finds the image damaged."""
    try:
        return function(*arguments, **options)
    except _UNEXPECTED as error:
        raise ImageError(f"damaged header ({single_line(str(error) or type(error).__name__)})") from error
    except DAMAGE as error:
        raise ImageError(first_line(error)) from error


def first_line(error: Exception) -> str:
    """The reason that an error of Pillow's or of the operating system's gives, in one printable line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = single_line(next(iter(text.splitlines()), "") or type(error).__name__)
    return line if " " in line and not line.startswith(("b'", "invalid literal")) else f"damaged ({line})"
