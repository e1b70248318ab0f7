"""`aecli eval`."""

from functools import partial

from aecli.cli.options import Output, takes
from aecli.configs import EvalConfig
from aecli.progress import Listener


@takes(EvalConfig)
def evaluate(config: EvalConfig, listen: Listener) -> Output:
    """Compare folders, or what models make of it, with a ground truth: PSNR, SSIM and LPIPS; or new images as sets."""
    from aecli.cli import tables

    if config.samples:
        from aecli.evaluation.sets import evaluate_sets

        sets = evaluate_sets(config, listen)
        return Output(sets.to_json(), partial(tables.print_sets, sets, config.format))

    if config.models:
        from aecli.inference.model_predictions import evaluate_models as run
    else:
        from aecli.evaluation.paired import evaluate as run

    report = run(config, listen)
    return Output(report.to_json(), partial(tables.print_evaluation, report, config.format))
