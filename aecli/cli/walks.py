"""`aecli interpolate` and `aecli traverse`."""

from aecli.cli.options import Output, takes
from aecli.configs import InterpolateConfig, TraverseConfig
from aecli.progress import Listener


@takes(InterpolateConfig)
def interpolate(config: InterpolateConfig, listen: Listener) -> Output:
    """Draw the images between two images in a model's latent space."""
    return _draw(config, listen)


@takes(TraverseConfig)
def traverse(config: TraverseConfig, listen: Listener) -> Output:
    """Draw images along the directions in which a model's latents vary most, from -3 to 3 standard deviations."""
    return _draw(config, listen)


def _draw(config: InterpolateConfig | TraverseConfig, listen: Listener) -> Output:
    from aecli.cli.console import print_line
    from aecli.sampling.walks import draw_walk

    result = draw_walk(config, listen)
    document = {"out": str(result.out), "steps": result.steps, "prior": result.prior}
    return Output(document, lambda: print_line(f"wrote a walk of {result.steps} steps to {result.out}"))
