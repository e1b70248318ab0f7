"""`aecli models`."""

from aecli.cli.options import Device, Json, Precision, Quiet, Runs
from aecli.configs import ModelsConfig
from aecli.runtime.launch import launch


def models(
    runs: Runs = ModelsConfig.runs,
    device: Device = ModelsConfig.device,
    precision: Precision = ModelsConfig.precision,
    json: Json = False,
    quiet: Quiet = False,  # there is nothing to be quiet about, but scripts give it to every command
) -> None:
    """Show the models there are, the runs found, and how they would run on this machine."""
    config = ModelsConfig(runs=runs, device=device, precision=precision)

    if launch().rank:
        return  # of several processes one tells

    from aecli.cli import console
    from aecli.runs.catalogue import list_models

    report = list_models(config)
    if json:
        console.print_json(report.to_json())
    else:
        console.print_models(report)
