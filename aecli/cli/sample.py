"""`aecli sample`."""

from aecli.cli.options import takes
from aecli.configs import SampleConfig


@takes(SampleConfig)
def sample(config: SampleConfig, json: bool, quiet: bool) -> None:
    """Draw new images from a prior over a model's latents."""
    from aecli.cli import console
    from aecli.sampling.sample import sample as run

    with console.listener(quiet) as listen:
        result = run(config, listen)
    if json:
        console.print_json({"out": str(result.out), "n": result.n, "prior": result.prior})
    else:
        console.print_line(f"wrote {result.n} samples to {result.out}")
