"""`aecli reconstruct`."""

from pathlib import Path
from typing import Annotated

import typer

from aecli.cli.completion import complete_source
from aecli.cli.options import (
    DATA,
    MACHINE,
    OUTPUT,
    SOURCE,
    Device,
    Json,
    LoadedModel,
    Overwrite,
    Precision,
    Quiet,
    Runs,
    Workers,
    choice,
)  # fmt: skip
from aecli.configs import SPLITS, ReconstructConfig


def reconstruct(
    model: LoadedModel,
    data: Annotated[
        str | None,
        typer.Option(
            help=f"Images to reconstruct. {SOURCE}",
            show_default="the run's validation images",
            rich_help_panel=DATA,
            metavar="SOURCE",
            autocompletion=complete_source,
        ),
    ] = ReconstructConfig.data,
    split: Annotated[
        str | None,
        typer.Option(
            help="Which of the images, by the run's own rule.",
            show_default="all of --data, or val",
            rich_help_panel=DATA,
            **choice(SPLITS),
        ),
    ] = ReconstructConfig.split,
    native: Annotated[
        bool,
        typer.Option(
            "--native",
            help="Keep each image's own size: pad to a multiple of 32, reconstruct, crop back.",
            rich_help_panel=DATA,
        ),
    ] = ReconstructConfig.native,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write to.", show_default="reconstructions/MODEL", rich_help_panel=OUTPUT, metavar="DIR"
        ),
    ] = ReconstructConfig.out,
    latents: Annotated[
        Path | None,
        typer.Option(
            help="Save the latents too: `mean` (N, …) and, where the model has a posterior, `log_variance`, with the "
            "images' names in the metadata.",
            rich_help_panel=OUTPUT,
            metavar="FILE.safetensors",
        ),
    ] = ReconstructConfig.latents,
    overwrite: Overwrite = ReconstructConfig.overwrite,
    runs: Runs = ReconstructConfig.runs,
    batch_size: Annotated[
        int, typer.Option(help="Images at a time.", rich_help_panel=MACHINE)
    ] = ReconstructConfig.batch_size,
    device: Device = ReconstructConfig.device,
    precision: Precision = ReconstructConfig.precision,
    workers: Workers = ReconstructConfig.workers,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a PNG for every input image, under its own relative path."""
    config = ReconstructConfig(
        model=model, data=data, split=split, native=native, out=out, overwrite=overwrite,
        latents=latents, runs=runs,
        batch_size=batch_size, device=device, precision=precision, workers=workers,
    )  # fmt: skip

    from aecli.cli import console
    from aecli.errors import DataError, summarize
    from aecli.inference.reconstruct import reconstruct as run

    with console.listener(quiet) as listen:
        result = run(config, listen)
    if json:
        console.print_json({
            "out": str(result.out), "written": result.written, "unreadable": result.unreadable,
            "latents": None if result.latents is None else str(result.latents),
        })  # fmt: skip
    else:
        console.print_line(f"wrote {result.written} reconstructions to {result.out}")
        if result.latents is not None:
            console.print_line(f"wrote their latents to {result.latents}")
    if result.unreadable:
        count = f"{len(result.unreadable)} image{'s' if len(result.unreadable) > 1 else ''}"
        raise DataError(f"{count} could not be read, without a reconstruction now: {summarize(result.unreadable)}")
