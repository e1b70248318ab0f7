"""Words that may be a stranger's (a name, a value, an error's text), made fit to be shown: they steer no terminal."""

from collections.abc import Mapping

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


def plain(text: str) -> str:
    """Return `text` in one printable line, and of what is long the end left out, so that no name fills a terminal."""
    return printable(text[:LONGEST]) + ("…" if len(text) > LONGEST else "")


def one_line(said: object) -> str:
    """Return what an error or a value says, as `plain` does, its line ends and tabs as blanks."""
    return plain(" ".join(str(said)[: 2 * LONGEST].split()) or type(said).__name__)


def name_some(reasons: Mapping[str, str]) -> str:
    """Return the first few of `reasons` (name -> reason) in words, and how many more there are."""
    named = "; ".join(f"{plain(name)}: {reason}" for name, reason in list(reasons.items())[:_NAMED])
    return named + (f"; and {len(reasons) - _NAMED} more" if len(reasons) > _NAMED else "")
