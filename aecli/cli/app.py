"""The Typer app: six commands and the one boundary at which failures become a message and an exit status."""

import atexit
import errno
import gc
import os
import sys
import warnings
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from aecli import __version__
from aecli.cli import evaluate, grid, models, reconstruct, sample, train
from aecli.errors import AecliError

INTERRUPTED = 130


class _Boundary(TyperGroup):
    """Runs a command; what the user can mend is told in a line or two, a bug keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AecliError as error:
            _fail(str(error), error.exit_status)
        except KeyboardInterrupt:
            _fail("interrupted", INTERRUPTED)
        except OSError as error:
            if error.errno is None or error.errno == errno.EPIPE:
                raise  # the first is no fault of the system's; the second means that nobody listens any more
            _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror), 1)


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
        typer.echo(f"aecli {__version__}")
        raise typer.Exit()


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


app.command("train")(train.train)
app.command("reconstruct")(reconstruct.reconstruct)
app.command("sample")(sample.sample)
app.command("eval")(evaluate.evaluate)
app.command("grid")(grid.grid)
app.command("models")(models.models)


def set_up_process() -> None:
    """Set what is the whole process's, before PyTorch is imported."""
    gc.set_threshold(100_000)  # importing PyTorch makes objects by the hundred thousand, none of them garbage
    warnings.filterwarnings("ignore", module="PIL")  # notes on damaged metadata of images that can be read all the same
    # GNU OpenMP's threads would wait for each other in a loop of many milliseconds, taking the core from whom they wait
    # for: with one busy neighbour on two cores, a training step took 19 times as long as alone. Now it takes 3 times.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def main() -> NoReturn:
    """Entry point of the `aecli` command: runs it, and leaves the process with its exit status."""
    set_up_process()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a file's name may hold what a terminal can't show
    try:
        app(prog_name="aecli")
    except SystemExit as end:
        _leave(end.code)
    _leave(0)


def _leave(code: str | int | None) -> NoReturn:
    """End the process at once: taking PyTorch's modules apart first would take as long as many a command."""
    if isinstance(code, str):
        print(code, file=sys.stderr)
    status = 1 if isinstance(code, str) else code or 0
    try:
        if sys.stdout is not None:  # it is None where it was closed
            sys.stdout.flush()
    except OSError as error:
        status = 1
        if error.errno != errno.EPIPE:  # with that one, nobody listens any more
            from aecli.cli import console

            console.show_error(f"the result can't be written to stdout: {error.strerror}")
    atexit._run_exitfuncs()
    os._exit(status)
