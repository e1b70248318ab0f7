"""Help for a terminal too narrow for Typer's tables, which would cut the names of options."""

import re
import textwrap
from typing import Any

NARROW = 76  # columns below which it is used


def narrow_help(command: Any, context: Any, width: int) -> str:
    """Return a command's help in lines of at most `width` columns, names of options excepted, which are never cut."""

    def lines(text: str, indent: str = "") -> list[str]:
        # Of choices, a|b|c or a,b,c, as many go into a line as fit.
        words = [re.sub("([|,])", r"\1 ", each) if len(each) > width - 8 else each for each in text.split()]
        return textwrap.wrap(
            " ".join(words), max(width, 20), initial_indent=indent, subsequent_indent=indent,
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip

    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    found = ["Usage:", *lines(usage, "  "), ""]
    for paragraph in (command.help or "").split("\n\n"):
        found += [*lines(paragraph), ""]
    for title, entries in _panels(command, context).items():
        found.append(title)
        for name, text in entries:
            found += [*lines(name, "  "), *lines(text, "      ")]
        found.append("")
    return "\n".join(found)


def _panels(command: Any, context: Any) -> dict[str, list[tuple[str, str]]]:
    """Return name and help of arguments, options and commands, by the title of their panel, in the order of tables."""
    panels: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for each in command.get_params(context):
        record = each.get_help_record(context)
        if record is not None:  # else it is hidden
            default = "Arguments" if each.param_type_name == "argument" else "Options"
            panels.setdefault(each.rich_help_panel or default, []).append(record)
    names = command.list_commands(context) if hasattr(command, "list_commands") else []
    helps = {name: command.get_command(context, name).help or "" for name in names}
    panels["Commands"] = [(name, text.partition("\n\n")[0]) for name, text in helps.items()]
    return {title: entries for title, entries in panels.items() if entries}
