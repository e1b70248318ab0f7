"""`aecli sample`."""

from aecli.cli.options import Output, takes
from aecli.configs import SampleConfig
from aecli.progress import Listener


@takes(SampleConfig)
def sample(config: SampleConfig, listen: Listener) -> Output:
    """Draw new images from a prior over a model's latents."""
    from aecli.cli.console import print_line
    from aecli.sampling.sample import sample as run

    result = run(config, listen)
    document = {"out": str(result.out), "n": result.n, "prior": result.prior}
    return Output(document, lambda: print_line(f"wrote {result.n} samples to {result.out}"))
