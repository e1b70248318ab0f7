"""`aecli sample`."""

from pathlib import Path
from typing import Annotated

import typer

from aecli.cli.options import (
    OUTPUT,
    RUN,
    Device,
    Json,
    LoadedModel,
    Overwrite,
    Precision,
    Quiet,
    Runs,
    Seed,
    choice,
)
from aecli.configs import PRIORS, SampleConfig

WALK = "Walk"


def sample(
    model: LoadedModel,
    prior: Annotated[
        str,
        typer.Option(
            help="What latents are drawn from; auto takes the best that is there. gaussian and mixture are fitted on "
            "first use, flow is trained by aecli train prior.",
            rich_help_panel=RUN,
            **choice(PRIORS),
        ),
    ] = SampleConfig.prior,
    n: Annotated[
        int | None,
        typer.Option("--n", help="How many images, or directions.", show_default="64, or 8", rich_help_panel=RUN),
    ] = SampleConfig.n,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Steps of a flow, or pictures in a row of a walk.",
            show_default="50, or 8 and 7",
            rich_help_panel=RUN,
        ),
    ] = SampleConfig.steps,
    temperature: Annotated[
        float, typer.Option(help="What the prior's deviations are multiplied by.", rich_help_panel=RUN)
    ] = SampleConfig.temperature,
    seed: Seed = SampleConfig.seed,
    interpolate: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            help="Draw what lies between two image files.", rich_help_panel=WALK, metavar="A B", show_default=False
        ),
    ] = SampleConfig.interpolate,
    traverse: Annotated[
        bool,
        typer.Option(
            "--traverse", help="Draw what lies along the latents' principal directions, ±3 σ.", rich_help_panel=WALK
        ),
    ] = SampleConfig.traverse,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A .png sheet, which is replaced if it is there; or a folder of one PNG an image. Of a walk a sheet, "
            "or an animated .gif or .webp.",
            rich_help_panel=OUTPUT,
            metavar="FILE|DIR",
            show_default="samples.png",
        ),
    ] = SampleConfig.out,
    overwrite: Overwrite = SampleConfig.overwrite,
    runs: Runs = SampleConfig.runs,
    device: Device = SampleConfig.device,
    precision: Precision = SampleConfig.precision,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw new images from a prior over a model's latents, or walk from one image to another."""
    config = SampleConfig(
        model=model,
        prior=prior,
        n=n,
        steps=steps,
        interpolate=interpolate,
        traverse=traverse,
        temperature=temperature,
        seed=seed,
        out=out,
        overwrite=overwrite,
        runs=runs,
        device=device,
        precision=precision,
    )

    from aecli.cli import console
    from aecli.sampling.sample import sample as run

    with console.listener(quiet) as listen:
        result = run(config, listen)
    if json:
        console.print_json({"out": str(result.out), "n": result.n, "prior": result.prior})
    elif interpolate or traverse:
        console.print_line(f"wrote a walk of {result.n} steps to {result.out}")
    else:
        console.print_line(f"wrote {result.n} samples to {result.out}")
