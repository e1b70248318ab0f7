"""`aecli grid`."""

from pathlib import Path
from typing import Annotated

import typer

from aecli.cli.completion import complete_model, complete_source
from aecli.cli.options import (
    DATA,
    MODEL,
    OUTPUT,
    SOURCE,
    Device,
    Json,
    Precision,
    Quiet,
    Runs,
    Seed,
)  # fmt: skip
from aecli.configs import GridConfig
from aecli.runtime.launch import launch


def grid(
    n: Annotated[
        int, typer.Option("--n", help="How many images, chosen at random.", rich_help_panel=DATA)
    ] = GridConfig.n,
    data: Annotated[
        str | None,
        typer.Option(
            help=f"Images to choose from. {SOURCE}",
            show_default="the first run's validation images",
            rich_help_panel=DATA,
            metavar="SOURCE",
            autocompletion=complete_source,
        ),
    ] = GridConfig.data,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A row for this model: a registry name, a run folder, or a .safetensors file; repeatable.",
            show_default="every registry model that has a run",
            rich_help_panel=MODEL,
            metavar="MODEL",
            autocompletion=complete_model,
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            help="The picture to write; one that is there is replaced.", rich_help_panel=OUTPUT, metavar="FILE.png"
        ),
    ] = GridConfig.out,
    seed: Seed = GridConfig.seed,
    runs: Runs = GridConfig.runs,
    device: Device = GridConfig.device,
    precision: Precision = GridConfig.precision,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw random images in labelled rows: Ground Truth, then one row a model."""
    config = GridConfig(
        n=n, data=data, models=tuple(model or ()), out=out, seed=seed, runs=runs, device=device, precision=precision
    )

    if launch().rank:
        return  # of several processes one draws

    from aecli.cli import console
    from aecli.inference.comparison_grid import draw_comparison

    with console.listener(quiet) as listen:
        result = draw_comparison(config, listen)
    if json:
        console.print_json({"out": str(result.out), "rows": result.rows, "images": result.images})
    else:
        console.print_line(f"drew {len(result.images)} images in rows {', '.join(result.rows)}: {result.out}")
