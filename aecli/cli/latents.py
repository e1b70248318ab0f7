"""`aecli encode` and `aecli decode`."""

from aecli.cli.options import Output, takes
from aecli.configs.latents import DecodeConfig, EncodeConfig
from aecli.errors import DataError, count_of, summarize
from aecli.progress import Listener


@takes(EncodeConfig)
def encode(config: EncodeConfig, listen: Listener) -> Output:
    """Write the latents of images, with labels and statistics, as trainers of diffusion models read them."""
    from aecli.cli.console import print_line
    from aecli.inference.latents.encode import encode as run

    result = run(config, listen)
    index, statistics = result.index, result.statistics
    scaling = statistics.latent_scaling
    document = {
        "out": str(result.out), "format": index.format, "written": index.written, "unreadable": index.unreadable,
        "latent_shape": index.latent_shape, "flip": index.flip, "classes": index.classes,
        "scaled": index.latent_scaling is not None, "statistics": statistics.to_json(),
        "conversions": result.conversions,
    }  # fmt: skip

    def show() -> None:
        shape = "×".join(map(str, index.latent_shape))
        classes = f", {len(index.classes)} classes" if index.classes else ""
        mirrored = ", mirrored too" if index.flip else ""
        print_line(f"wrote latents {shape} of {count_of(index.written, 'image')}{mirrored}{classes} to {result.out}")
        how = "stored as" if index.latent_scaling is not None else "stored as they are; for a deviation of 1:"
        print_line(f"standard deviation {statistics.overall_std:.4g}, {how} {scaling}")
        if codes := statistics.codes:
            books = f"{count_of(codes.codebooks, 'codebook')} of {codes.codebook_size:,}"
            print_line(f"{100 * codes.usage:.1f} % of the codes of {books} used, perplexity {codes.perplexity:.1f}")

    failure = None
    if index.unreadable:
        count = count_of(len(index.unreadable), "image")
        failure = DataError(f"{count} could not be read and have no latents: {summarize(index.unreadable)}")
    return Output(document, show, failure)


@takes(DecodeConfig)
def decode(config: DecodeConfig, listen: Listener) -> Output:
    """Write a PNG for each latent in a folder or file, whoever wrote it."""
    from aecli.cli.console import print_line
    from aecli.inference.latents.decode import decode as run

    result = run(config, listen)
    document = {"out": str(result.out), "written": result.written, "latent_scaling": result.scaling.to_json()}
    return Output(document, lambda: print_line(f"wrote {count_of(result.written, 'picture')} to {result.out}"))
