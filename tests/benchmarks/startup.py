"""`aecli --help` against a Typer app with as many empty commands: whole processes.

python -m tests.benchmarks.startup [--repeats 20] [--json]
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.benchmarks.common import Row, arguments, interleave, run, show

BARE = """
import typer

app = typer.Typer()
for name in ("train", "reconstruct", "sample", "interpolate", "traverse", "eval", "compare", "grid", "models"):

    @app.command(name)
    def command() -> None:
        "Do nothing."

app(prog_name="bare")
"""


def main() -> None:
    """Measure and print the best of many turns, which other load on the machine changes least."""
    options = arguments(__doc__ or "", repeats=(20, "turns"))
    with TemporaryDirectory() as name:
        bare = Path(name, "bare.py")
        bare.write_text(BARE, encoding="utf-8")
        rows = []
        for what, arguments_of in (("aecli --help", ["--help"]), ("aecli train --help", ["train", "--help"])):
            ways = [[sys.executable, "-m", "aecli", *arguments_of], [sys.executable, bare, *arguments_of],
                    [sys.executable, "-c", ""]]  # fmt: skip
            found = interleave([lambda way=way: run(way).seconds for way in ways], options.repeats)
            ours, plain, python = (min(times) for times in found)
            rows.append(Row(what, "s", ours, plain, ours / plain, python, "Python's own start-up"))
    show("Start-up (ratio: ours / plain, lower is better)", rows, options.json)


if __name__ == "__main__":
    main()
