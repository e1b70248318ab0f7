"""The Typer app: the commands and the one boundary at which failures become a message and an exit status."""

import os
import re
from importlib.machinery import EXTENSION_SUFFIXES
from itertools import pairwise
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from aecli._version import __version__
from aecli.cli import evaluate, grid, models, reconstruct, sample, train, walks
from aecli.errors import AecliError, ConfigError

_NO_THREAD = "can't start new thread"  # all that Python says, in a RuntimeError


class _Boundary(TyperGroup):
    """Runs a command; what the user can mend is told in a line or two, a bug keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            _require_folder()
            return super().invoke(ctx)
        except AecliError as error:
            _fail(str(error), error.exit_status)
        except OSError as error:
            if error.errno is None:
                raise  # no fault of the system's
            _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror), 1)
        except MemoryError:
            _fail("too little memory", 1)
        except ImportError as error:
            if not (error.path or "").endswith(tuple(EXTENSION_SUFFIXES)):
                raise  # what it names isn't there: a bug, here or in a plug-in
            _fail(f"too little memory, or an installation that isn't whole: {error}", 1)
        except RuntimeError as error:
            if str(error) != _NO_THREAD:
                raise
            _fail("the system allows no further thread: try fewer --workers, and OMP_NUM_THREADS=1", 1)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        # Both were options of sample once, which still work.
        for name in ("interpolate", "traverse"):
            if args[:1] == ["sample"] and f"--{name}" in args:
                args = [name, *(arg for arg in args[1:] if arg != f"--{name}")]
        return super().resolve_command(ctx, args)


class _Command(TyperCommand):
    """A command none of whose values can be empty: an empty one is a shell variable that was never set."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for before, value in pairwise([str(self.name), *args]):
            flag = re.fullmatch(r"(--[\w-]+)=", value)
            if (flag or not value) and not ctx.resilient_parsing:  # as shell completion asks for it
                name = flag[1] if flag else before
                raise ConfigError(f"{name} '': expected a value; is a variable of the shell not set?")
        return super().parse_args(ctx, args)


def _require_folder() -> None:
    """Libraries end the process in ways of their own where the folder that it runs in is gone."""
    try:
        os.getcwd()
    except FileNotFoundError:
        _fail("the folder that this runs in is gone: change to another one", 1)


def _fail(message: str, status: int) -> None:
    from aecli.cli import console

    console.show_error(message)
    raise typer.Exit(status)


app = typer.Typer(
    cls=_Boundary,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train image autoencoders, reconstruct and sample with them, measure what they do, and draw it.",
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


app.command("train", cls=_Command)(train.train)
app.command("reconstruct", cls=_Command)(reconstruct.reconstruct)
app.command("sample", cls=_Command)(sample.sample)
app.command("interpolate", cls=_Command)(walks.interpolate)
app.command("traverse", cls=_Command)(walks.traverse)
app.command("eval", cls=_Command)(evaluate.evaluate)
app.command("grid", cls=_Command)(grid.grid)
app.command("models", cls=_Command)(models.models)
