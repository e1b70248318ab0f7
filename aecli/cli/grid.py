"""`aecli grid`."""

from aecli.cli.options import Output, takes
from aecli.configs import GridConfig
from aecli.progress import Listener


@takes(GridConfig, one_process=True)
def grid(config: GridConfig, listen: Listener) -> Output:
    """Draw random images in labelled rows: Ground Truth, then one row per model."""
    from aecli.cli.console import print_line
    from aecli.inference.comparison_grid import draw_comparison

    result = draw_comparison(config, listen)
    document = {"out": str(result.out), "rows": result.rows, "images": result.images,
                "conversions": result.conversions}  # fmt: skip
    text = f"drew {len(result.images)} images in rows {', '.join(result.rows)}: {result.out}"
    return Output(document, lambda: print_line(text))
