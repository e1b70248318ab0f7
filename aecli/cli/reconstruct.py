"""`aecli reconstruct`."""

from aecli.cli.options import takes
from aecli.configs import ReconstructConfig


@takes(ReconstructConfig)
def reconstruct(config: ReconstructConfig, json: bool, quiet: bool) -> None:
    """Write a PNG for every input image, under its own relative path."""
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
        raise DataError(f"{count} could not be read and have no reconstruction: {summarize(result.unreadable)}")
