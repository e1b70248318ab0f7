"""`aecli eval`."""

from aecli.cli.options import takes
from aecli.configs import EvalConfig


@takes(EvalConfig)
def evaluate(config: EvalConfig, json: bool, quiet: bool) -> None:
    """Compare folders of images with a ground-truth folder: PSNR, SSIM and LPIPS, or new images with it as sets."""
    from aecli.cli import console

    if config.samples:
        from aecli.evaluation.sets import evaluate_sets

        with console.listener(quiet) as listen:
            sets = evaluate_sets(config, listen)
        if json:
            console.print_json(sets.to_json())
        else:
            console.print_sets(sets)
        return

    from aecli.evaluation.paired import evaluate as run

    with console.listener(quiet) as listen:
        found = run(config, listen)
    if json:
        console.print_json(found.to_json())
    else:
        console.print_evaluation(found)
