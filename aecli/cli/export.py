"""`aecli export`."""

from aecli.cli.options import Output, takes
from aecli.configs import ExportConfig
from aecli.progress import Listener


@takes(ExportConfig, one_process=True)
def export(config: ExportConfig, listen: Listener) -> Output:
    """Write a model for diffusers, ONNX or torch.export, with a model card."""
    from aecli.cli.console import print_line
    from aecli.inference.export.export import export_model

    result = export_model(config, listen)
    scaling = None if result.scaling is None else result.scaling.to_json()
    document = {"out": str(result.out), "format": config.format, "files": result.files, "scaling": scaling,
                "url": result.url}  # fmt: skip

    def show() -> None:
        print_line(f"wrote {', '.join(result.files)} to {result.out}")
        if result.url is not None:
            print_line(f"uploaded them to {result.url}")

    return Output(document, show)
