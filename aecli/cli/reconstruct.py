"""`aecli reconstruct`."""

from aecli.cli.options import Output, takes
from aecli.configs import ReconstructConfig
from aecli.errors import DataError, summarize
from aecli.progress import Listener


@takes(ReconstructConfig)
def reconstruct(config: ReconstructConfig, listen: Listener) -> Output:
    """Write a PNG for every input image, under its own relative path."""
    from aecli.cli.console import print_line
    from aecli.cli.signposts import after_reconstructing
    from aecli.inference.reconstruct import reconstruct as run

    result = run(config, listen)
    latents = None if result.latents is None else str(result.latents)
    document = {"out": str(result.out), "written": result.written, "unreadable": result.unreadable, "latents": latents,
                "conversions": result.conversions}  # fmt: skip

    def show() -> None:
        print_line(f"wrote {result.written} reconstructions to {result.out}")
        if latents is not None:
            print_line(f"wrote their latents to {latents}")

    failure = None
    if result.unreadable:
        count = f"{len(result.unreadable)} image{'s' if len(result.unreadable) > 1 else ''}"
        failure = DataError(f"{count} could not be read and have no reconstruction: {summarize(result.unreadable)}")
    (source,) = result.conversions
    following = after_reconstructing(config, source, result.out, result.image_size, result.fit)
    return Output(document, show, failure, None if failure else following)
