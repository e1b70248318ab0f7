"""Text for the user: results on stdout, everything else on stderr."""

import json
import re
from typing import Any

from rich.console import Console
from rich.text import Text

from aecli.errors import printable


def stdout() -> Console:
    """The console for results."""
    return Console(highlight=False, markup=False, emoji=False)


def stderr() -> Console:
    """The console for progress, notices and errors."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def shorten(text: str) -> str:
    """Return `text` printable, without the middle of words of over 1000 characters; no path is as long."""
    return re.sub(r"(\S{600})\S{400,}(\S{100})", r"\1…\2", printable(text, line_ends=True))


def show_error(message: str) -> None:
    """Print a failure to stderr."""
    stderr().print(Text.assemble(("Error: ", "bold red"), shorten(message)), soft_wrap=True)


def notice(message: str) -> Text:
    """Return a notice as it is shown."""
    return Text.assemble(("Note: ", "yellow"), shorten(message))


def show_next(command: str) -> None:
    """Print the command to type next to stderr."""
    stderr().print(Text.assemble(("Next: ", "green"), shorten(command)), soft_wrap=True)


def print_line(text: str) -> None:
    """Print one line of result to stdout, never wrapped."""
    stdout().print(printable(text), soft_wrap=True)


def print_json(value: Any) -> None:
    """Print one strict JSON document to stdout."""
    print(json.dumps(value, indent=2, allow_nan=False))
