"""The options that more than one command has, and how given ones are told from defaults."""

from pathlib import Path
from typing import Annotated, Any

import typer

from aecli.cli.completion import complete_model, starting
from aecli.configs import PRECISIONS

DATA, MODEL, RECIPE, RUN, MACHINE, OUTPUT = "Data", "Model", "Recipe", "Run", "Machine", "Output"


def choice(values: tuple[str, ...] | list[str]) -> dict[str, Any]:
    """Typer arguments of an option that takes one of `values`; the config dataclass is what checks it."""
    return {"metavar": "|".join(values), "autocompletion": lambda incomplete: starting(values, incomplete)}


def given(context: typer.Context) -> dict[str, Any]:
    """The parameters that the user gave, by name, without those that stand at their defaults."""
    return {
        name: value
        for name, value in context.params.items()
        if (source := context.get_parameter_source(name)) is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")
    }


Device = Annotated[
    str,
    typer.Option(
        help="Where to compute; auto picks CUDA, then MPS, then the CPU.",
        rich_help_panel=MACHINE,
        metavar="auto|cpu|cuda|cuda:N|mps",
        autocompletion=lambda incomplete: starting(["auto", "cpu", "cuda", "mps"], incomplete),
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        help="Arithmetic; auto trains in bf16 where the hardware multiplies it fast, and runs everything else in fp32.",
        rich_help_panel=MACHINE,
        **choice(PRECISIONS),
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Threads that decode images.", show_default="as many as CPUs", rich_help_panel=MACHINE, metavar="INT"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.", rich_help_panel=OUTPUT)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notices.", rich_help_panel=OUTPUT)]
Seed = Annotated[int, typer.Option(help="Where all randomness comes from.", rich_help_panel=RUN)]
Runs = Annotated[Path, typer.Option(help="The folder that runs lie in.", rich_help_panel=RUN)]
LoadedModel = Annotated[
    str,
    typer.Option(
        "--model",
        help="A registry name (its newest run under --runs), a run folder, or a .safetensors file.",
        rich_help_panel=MODEL,
        metavar="MODEL",
        autocompletion=complete_model,
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Write into a folder that already holds files, and over those of the same name; never over what is read.",
        rich_help_panel=OUTPUT,
    ),
]
SOURCE = "A folder, a .zip of one, tar or Parquet shards, demo, torchvision:NAME or hf:NAME."
