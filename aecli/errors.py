"""The failures that the program understands. A message says what is wrong, where, and the mend, in one or two lines."""

from collections.abc import Mapping


class AecliError(Exception):
    """A failure with a message for the user; the command line prints it and leaves with `exit_status`."""

    exit_status = 1


class ConfigError(AecliError):
    """An option, or a combination of options, that can't be meant: wrong usage."""

    exit_status = 2


class DataError(AecliError):
    """A source of images that can't be found, listed, read or paired."""


class ModelError(AecliError):
    """A model that is not known, can't be imported, or can't do what was asked of it."""


class CheckpointError(AecliError):
    """A run folder or a checkpoint that is missing, damaged or does not fit."""


class OutputError(AecliError):
    """A place to write to that is taken or can't be written."""


class WeightsError(AecliError):
    """Weights of a metric's network that can't be had."""


class TrainingError(AecliError):
    """A training run that can't go on: a loss that is no finite number."""


class DeviceError(AecliError):
    """A device or compiler that this machine does not have, or that has too little memory."""


class PeerError(AecliError):
    """Another of the processes that share a command's work is lost; why, it has told itself, if it could."""


LONGEST = 200  # characters of one name or error in a message


_NAMED = 5


def printable(text: str, line_ends: bool = False) -> str:
    """Return `text` with what can't be printed spelled out; `line_ends` stay where asked for."""
    return "".join(
        char
        if char.isprintable() or (line_ends and char == "\n")
        else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )


def single_line(text: str) -> str:
    """Return `text` in one printable line, and of what is long the end left out, so that no name fills a terminal."""
    return printable(text[:LONGEST]) + ("…" if len(text) > LONGEST else "")


def message_of(said: object) -> str:
    """Return what an error or a value says, as `plain` does, its line ends and tabs as blanks."""
    return single_line(" ".join(str(said)[: 2 * LONGEST].split()) or type(said).__name__)


def summarize(reasons: Mapping[str, str]) -> str:
    """Return the first few of `reasons` (name -> reason) in words, and how many more there are."""
    named = "; ".join(f"{single_line(name)}: {reason}" for name, reason in list(reasons.items())[:_NAMED])
    return named + (f"; and {len(reasons) - _NAMED} more" if len(reasons) > _NAMED else "")
