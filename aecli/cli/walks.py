"""`aecli interpolate` and `aecli traverse`."""

from typing import TYPE_CHECKING

from aecli.cli.options import takes
from aecli.configs import InterpolateConfig, TraverseConfig

if TYPE_CHECKING:
    from aecli.sampling.walks import WalkResult


@takes(InterpolateConfig)
def interpolate(config: InterpolateConfig, json: bool, quiet: bool) -> None:
    """Draw what lies between two images in a model's latent space."""
    from aecli.cli import console
    from aecli.sampling.walks import draw_interpolation

    with console.listener(quiet) as listen:
        result = draw_interpolation(config, listen)
    _show(result, json)


@takes(TraverseConfig)
def traverse(config: TraverseConfig, json: bool, quiet: bool) -> None:
    """Draw what lies along the directions in which a model's latents vary most, from -3 to 3 standard deviations."""
    from aecli.cli import console
    from aecli.sampling.walks import draw_traversal

    with console.listener(quiet) as listen:
        result = draw_traversal(config, listen)
    _show(result, json)


def _show(result: "WalkResult", json: bool) -> None:
    from aecli.cli import console

    if json:
        console.print_json({"out": str(result.out), "steps": result.steps, "prior": result.prior})
    else:
        console.print_line(f"wrote a walk of {result.steps} steps to {result.out}")
