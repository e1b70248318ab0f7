"""`aecli grid`."""

from aecli.cli.options import takes
from aecli.configs import GridConfig
from aecli.runtime.launch import launch


@takes(GridConfig)
def grid(config: GridConfig, json: bool, quiet: bool) -> None:
    """Draw random images in labelled rows: Ground Truth, then one row a model."""
    if launch().rank:
        return  # of several processes one draws

    from aecli.cli import console
    from aecli.inference.comparison_grid import draw_comparison

    with console.listener(quiet) as listen:
        result = draw_comparison(config, listen)
    if json:
        console.print_json({"out": str(result.out), "rows": result.rows, "images": result.images})
    else:
        console.print_line(f"drew {len(result.images)} images in rows {', '.join(result.rows)}: {result.out}")
