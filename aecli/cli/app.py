"""The Typer app: its commands, and the one place where failures become a message and an exit status."""

import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from itertools import pairwise
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from aecli._version import __version__
from aecli.cli.signposts import check_command, check_options
from aecli.errors import AecliError, ConfigError

_COMMANDS = {  # name → module and function, imported when the command is run or its help shown
    "train": ("aecli.cli.train", "train"),
    "reconstruct": ("aecli.cli.reconstruct", "reconstruct"),
    "encode": ("aecli.cli.latents", "encode"),
    "decode": ("aecli.cli.latents", "decode"),
    "sample": ("aecli.cli.sample", "sample"),
    "interpolate": ("aecli.cli.walks", "interpolate"),
    "traverse": ("aecli.cli.walks", "traverse"),
    "eval": ("aecli.cli.evaluate", "evaluate"),
    "compare": ("aecli.cli.compare", "compare"),
    "score": ("aecli.cli.score", "score"),
    "grid": ("aecli.cli.grid", "grid"),
    "export": ("aecli.cli.export", "export"),
    "models": ("aecli.cli.models", "models"),
}
_NO_THREAD = "can't start new thread"  # the whole message of Python's RuntimeError


class _Commands(Mapping[str, Any]):
    """Name → command, built when it is asked for: building all of them takes longer than importing Typer."""

    def __getitem__(self, name: str) -> Any:
        return _build_command(name)

    def __iter__(self) -> Iterator[str]:
        return iter(_COMMANDS)

    def __len__(self) -> int:
        return len(_COMMANDS)


@cache
def _build_command(name: str) -> Any:
    module, function = _COMMANDS[name]
    single = typer.Typer(add_completion=False)
    single.command(name, cls=_Command)(getattr(import_module(module), function))
    return typer.main.get_command(single)


class _Group(TyperGroup):
    """Runs a command: expected failures become a message of one or two lines, a bug keeps its traceback."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Commands()  # type: ignore[assignment]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:
            try:
                check_options("aecli", args[:1], _flags(self, ctx))
            except ConfigError as error:
                _fail(str(error), error.exit_status)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            _require_folder()
            return super().invoke(ctx)
        except AecliError as error:
            _fail(str(error), error.exit_status)
        except OSError as error:
            if error.errno is None:
                raise  # not from the operating system
            _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror), 1)
        except MemoryError:
            _fail("too little memory", 1)
        except ImportError as error:
            if not (error.path or "").endswith(tuple(EXTENSION_SUFFIXES)):
                raise  # a missing module: a bug, here or in a plug-in
            _fail(f"too little memory, or an incomplete installation: {error}", 1)
        except RuntimeError as error:
            if str(error) != _NO_THREAD:
                raise
            _fail("the system refuses to start another thread\nhint: fewer --workers, or OMP_NUM_THREADS=1", 1)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        # Both were options of sample once; the old spelling still works.
        for name in ("interpolate", "traverse"):
            if args[:1] == ["sample"] and f"--{name}" in args:
                args = [name, *(arg for arg in args[1:] if arg != f"--{name}")]
        if args and args[0] not in _COMMANDS and not ctx.resilient_parsing:
            check_command(args[0], args[1:])
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _show_help(self, ctx, super().format_help, formatter)


class _Command(TyperCommand):
    """A command that refuses empty values, which are most often an unset shell variable."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for before, value in pairwise([str(self.name), *args]):
            flag = re.fullmatch(r"(--[\w-]+)=", value)
            if (flag or not value) and not ctx.resilient_parsing:  # shell completion may ask with an empty value
                name = flag[1] if flag else before
                raise ConfigError(f"{name} '': expected a value\nhint: is a variable of the shell not set?")
        if not ctx.resilient_parsing:
            check_options(f"aecli {self.name}", args, _flags(self, ctx))
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _show_help(self, ctx, super().format_help, formatter)


def _flags(command: Any, ctx: Any) -> set[str]:
    return {flag for each in command.get_params(ctx) for flag in each.opts}


def _show_help(command: Any, ctx: Any, show_tables: Any, formatter: Any) -> None:
    """Print help in Typer's tables where they have room, else in lines."""
    from aecli.cli.console import stdout
    from aecli.cli.narrow_help import NARROW, narrow_help

    if (width := stdout().width) < NARROW:
        print(narrow_help(command, ctx, width))
    else:
        show_tables(ctx, formatter)


def _require_folder() -> None:
    """Fail if the working folder was deleted; libraries would abort the process with messages of their own."""
    try:
        os.getcwd()
    except FileNotFoundError:
        _fail("the working folder doesn't exist any more\nhint: change to another folder", 1)


def _fail(message: str, status: int) -> None:
    from aecli.cli import console

    console.show_error(message)
    raise typer.Exit(status)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train image autoencoders, reconstruct and sample with them, measure the results, and draw them.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"aecli {__version__}")
        raise typer.Exit()


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass
