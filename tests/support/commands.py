"""Generates the command reference: `python -m tests.support.commands > examples/COMMANDS.md`."""

import sys
from pathlib import Path
from types import NoneType
from typing import get_args, get_type_hints

import typer

from aecli.cli.app import app

HEAD = """# All commands

Generated from the program; `aecli COMMAND --help` shows the same. Results go to stdout, everything else to stderr.
"""
METAVARS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}


def reference() -> str:
    """The page, in Markdown."""
    commands = typer.main.get_command(app).commands
    sections = (section(name, each, get_type_hints(each.callback)) for name, each in commands.items())
    return "\n".join([HEAD, *sections])


def section(name, command, kinds) -> str:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    usage = " ".join(["aecli", name, *(each.metavar or each.name.upper() for each in arguments), "[OPTIONS]"])
    panels: dict[str, list[str]] = {}
    for parameter in command.params:
        if parameter.param_type_name == "option" and parameter.name != "help" and not parameter.hidden:
            panel = getattr(parameter, "rich_help_panel", None) or "Options"
            panels.setdefault(panel, []).append(row(parameter, kinds))
    lines = [f"## `{usage}`", "", *(line.strip() for line in command.help.strip().splitlines()), ""]
    for each in arguments:
        lines += [f"`{each.metavar or each.name.upper()}`: {each.help}", ""]
    for panel, rows in panels.items():
        lines += [f"| {panel} | | default |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def row(parameter, kinds) -> str:
    flags = ", ".join(f"`{flag}`" for flag in parameter.opts)
    kind = next(one for one in get_args(kinds[parameter.name]) or (kinds[parameter.name],) if one is not NoneType)
    metavar = "" if parameter.is_flag else f" `{parameter.metavar or METAVARS[kind]}`"
    if parameter.required:
        default = "required"
    elif isinstance(parameter.show_default, str):
        default = parameter.show_default
    elif parameter.is_flag or parameter.default is None or parameter.multiple:
        default = ""
    else:
        default = f"`{parameter.default}`"
    cells = (flags + metavar, parameter.help or "", default)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    sys.stdout.write(reference())
