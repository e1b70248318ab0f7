"""Errors with a message for the user: what is wrong (flag, file, value), then `hint: …` with the way out."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TypeVar

Entered = TypeVar("Entered")


class AecliError(Exception):
    """Base class; the command line prints the message and exits with `exit_status`."""

    exit_status = 1

    @property
    def headline(self) -> str:
        """The message without its hint."""
        return str(self).partition("\n")[0]


class ConfigError(AecliError):
    """An invalid option or combination of options."""

    exit_status = 2


class DataError(AecliError):
    """A source of images that can't be found, listed, read or paired."""


class ModelError(AecliError):
    """A model that is unknown, can't be imported, or doesn't support what was asked of it."""


class CheckpointError(AecliError):
    """A run folder or checkpoint that is missing, damaged or doesn't match the model."""


class OutputError(AecliError):
    """An output path that is in use, must not be replaced, or can't be written."""


class WeightsError(AecliError):
    """Weights of a metric's network that are missing or damaged."""


class TrainingError(AecliError):
    """Training that can't continue: a loss or gradient is not finite."""


class DeviceError(AecliError):
    """A device or compiler that is not available, or too little memory."""


class PeerError(AecliError):
    """Another process of the same command failed or stopped responding; it reports its own error, if it can."""


MAX_LENGTH = 200  # characters of one name or error in a message
MAX_LISTED = 5  # reasons in a summary
EXAMPLES = 3  # names in a notice


@contextmanager
def entering(context: AbstractContextManager[Entered], errors: AbstractContextManager[None]) -> Iterator[Entered]:
    """Enter `context`, with `errors` converting what that raises, and not what the block does."""
    with ExitStack() as stack:
        with errors:
            entered = stack.enter_context(context)
        yield entered


def printable(text: str, line_ends: bool = False) -> str:
    """Return `text` with unprintable characters escaped; newlines are kept where `line_ends` is True.

    A byte of a file name that is no text in the system's encoding (Python's surrogate escapes) is shown in hexadecimal.
    """
    return "".join(char if char.isprintable() or (line_ends and char == "\n") else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape", "surrogatepass").decode()


def quoted(name: str) -> str:
    """Return a name in quotes, as `printable` shows it."""
    return f"'{printable(name)}'"


def single_line(text: str) -> str:
    """Return `text` as one printable line of at most `MAX_LENGTH` characters and an ellipsis."""
    return printable(text[:MAX_LENGTH]) + ("…" if len(text) > MAX_LENGTH else "")


def message_of(value: object) -> str:
    """Return the text of an error or value as `single_line` does, whitespace collapsed; its type where it has none."""
    return single_line(" ".join(str(value)[: 2 * MAX_LENGTH].split()) or type(value).__name__)


def summarize(reasons: Mapping[str, str]) -> str:
    """Return the first `MAX_LISTED` of `reasons` (name -> reason) as text, and how many more there are."""
    listed = "; ".join(f"{single_line(name)}: {reason}" for name, reason in list(reasons.items())[:MAX_LISTED])
    return listed + (f"; and {len(reasons) - MAX_LISTED} more" if len(reasons) > MAX_LISTED else "")


def count_of(count: int, noun: str) -> str:
    """Return a number of things in words: `1 image`, `1,200 images`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def name_examples(names: Sequence[str], count: int) -> str:
    """Return the first `EXAMPLES` of the names of `count` things as text, with an ellipsis where there are more."""
    listed = names[:EXAMPLES]
    return ", ".join(map(single_line, listed)) + (", …" if count > len(listed) else "")
