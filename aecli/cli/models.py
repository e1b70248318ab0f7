"""`aecli models`."""

from functools import partial

from aecli.cli.options import Output, takes
from aecli.configs import ModelsConfig
from aecli.progress import Listener


@takes(ModelsConfig, one_process=True)
def models(config: ModelsConfig, _listen: Listener) -> Output:
    """Show the registered models, the runs found, and how they would run on this machine."""
    from aecli.cli.tables import print_models
    from aecli.runs.catalogue import list_models

    report = list_models(config)
    return Output(report.to_json(), partial(print_models, report))
