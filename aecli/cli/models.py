"""`aecli models`."""

from aecli.cli.options import takes
from aecli.configs import ModelsConfig
from aecli.runtime.launch import launch


@takes(ModelsConfig)
def models(config: ModelsConfig, json: bool, quiet: bool) -> None:  # quiet: scripts give it to every command
    """Show the models there are, the runs found, and how they would run on this machine."""
    if launch().rank:
        return  # of several processes one prints

    from aecli.cli import console
    from aecli.runs.catalogue import list_models

    report = list_models(config)
    if json:
        console.print_json(report.to_json())
    else:
        console.print_models(report)
