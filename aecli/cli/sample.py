"""`aecli sample`."""

from pathlib import Path
from typing import Annotated

import typer

from aecli.cli.options import OUTPUT, RUN, Device, Json, LoadedModel, Overwrite, Precision, Quiet, Runs, Seed
from aecli.configs import SampleConfig


def sample(
    model: LoadedModel,
    n: Annotated[int, typer.Option("--n", help="How many images.", rich_help_panel=RUN)] = SampleConfig.n,
    temperature: Annotated[
        float, typer.Option(help="Standard deviation of the latents that are drawn.", rich_help_panel=RUN)
    ] = SampleConfig.temperature,
    seed: Seed = SampleConfig.seed,
    out: Annotated[
        Path,
        typer.Option(
            help="A .png sheet, which is replaced if it is there; or a folder of one PNG an image.",
            rich_help_panel=OUTPUT,
            metavar="FILE.png|DIR",
        ),
    ] = SampleConfig.out,
    overwrite: Overwrite = SampleConfig.overwrite,
    runs: Runs = SampleConfig.runs,
    device: Device = SampleConfig.device,
    precision: Precision = SampleConfig.precision,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw new images from a VAE's prior N(0, I). An AE has none, and is refused."""
    config = SampleConfig(
        model=model,
        n=n,
        temperature=temperature,
        seed=seed,
        out=out,
        overwrite=overwrite,
        runs=runs,
        device=device,
        precision=precision,
    )

    from aecli.cli import console
    from aecli.sampling import sample as run

    with console.listener(quiet) as listen:
        result = run(config, listen)
    if json:
        console.print_json({"out": str(result.out), "n": result.n})
    else:
        console.print_line(f"wrote {result.n} samples to {result.out}")
