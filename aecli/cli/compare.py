"""`aecli compare`."""

from functools import partial

from aecli.cli.options import Output, takes
from aecli.configs import CompareConfig
from aecli.progress import Listener


@takes(CompareConfig, one_process=True)
def compare(config: CompareConfig, _listen: Listener) -> Output:
    """Compare two evaluations image by image: what aecli eval --json wrote of the same images, apart."""
    from aecli.cli.tables import print_comparisons
    from aecli.evaluation.comparing import compare_evaluations

    report = compare_evaluations(config)
    return Output(report.to_json(), partial(print_comparisons, report, config.format))
