"""Plots of a training run's metrics.csv."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from math import isfinite
from typing import TYPE_CHECKING

from aecli.figures.columns import metric_name
from aecli.figures.plotting import BLUE, GREY, INK, ORANGE, quiet_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, float | None]]
Points = list[tuple[float, float]]  # (epoch, value)
Curve = tuple[str, str, Points]  # name in the legend, colour, points

RATE = "Learning rate"
Panel = tuple[str, tuple[tuple[str, str, str], ...]]  # title, then (column, name, colour) a curve
_LOSS: Panel = ("Loss", (("train_loss", "training", BLUE), ("val_loss", "validation", ORANGE)))
WIDTH_INCHES, LINE_INCHES, DPI = 12.0, 3.2, 100
DOTTED_EPOCHS = 40  # up to this number every epoch is marked with a dot; a single one would be invisible


def draw_curves(rows: Rows) -> bytes:
    """Draw the loss and its parts, the metrics and the learning rate against the epoch; a PNG 1200 pixels wide.

    The best epoch (lowest validation loss, or training loss without validation) is marked and named in the title.

    Args:
        rows: the rows of a metrics.csv. A panel without a finite value is left out.

    Raises:
        ValueError: there is no value to draw.
        OutputError: matplotlib finds no writable folder for its font cache.
    """
    panels = [(title, curves) for title, spec in _panels(rows) if (curves := _curves(rows, spec))]
    if not panels:
        raise ValueError("expected at least one row with a number to draw")
    best, headline = _best(rows)
    buffer = BytesIO()
    with quiet_matplotlib():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        lines = (len(panels) + 1) // 2
        layout = ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.1, wspace=0.02, hspace=0.02)
        figure = Figure(figsize=(WIDTH_INCHES, 0.5 + LINE_INCHES * lines), dpi=DPI, layout=layout)
        canvas = FigureCanvasAgg(figure)
        for axes, (title, curves) in zip(_grid_of_axes(figure, len(panels)), panels, strict=True):
            _draw_panel(axes, title, curves)
            if best is not None:
                axes.axvline(best, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
                for _, colour, points in curves:
                    axes.plot(*zip(*(point for point in points if point[0] == best), strict=True), marker="o",
                              markersize=6.5, markerfacecolor="white", markeredgecolor=colour, zorder=3)  # fmt: skip
        _align_epochs(figure, rows)
        figure.suptitle(headline, x=0.014, ha="left", fontsize=13, fontweight="bold", color=INK)
        canvas.print_figure(buffer, format="png")
    return buffer.getvalue()


def _panels(rows: Rows) -> list[Panel]:
    """Return a panel of the loss, one of each metric, one of each part of the loss but a lone one, and the rate."""
    columns = list(dict.fromkeys(column for row in rows for column, value in row.items() if value is not None))
    metrics = [column for column in columns if column.startswith("val_") and column != "val_loss"]
    parts = [
        column for column in columns if column.startswith("train_") and column not in ("train_loss", "train_recon")
    ]
    if set(parts) - {"train_kl"}:  # of the report's losses the reconstruction is nearly the whole
        parts.insert(0, "train_recon")
    return [
        _LOSS,
        *((f"Validation {_with_unit(column)}", ((column, "validation", ORANGE),)) for column in metrics),
        *((f"Training {metric_name(column)}", ((column, "training", BLUE),)) for column in parts),
        (RATE, (("lr", "training", BLUE),)),
    ]


def _with_unit(column: str) -> str:
    return metric_name(column) + (", dB" if column.endswith("psnr") else "")


def _points(rows: Rows, column: str) -> Points:
    """Return (epoch, value) of the rows that have both, with a finite value."""
    pairs = [(row.get("epoch"), row.get(column)) for row in rows]
    return [(epoch, value) for epoch, value in pairs if epoch is not None and value is not None and isfinite(value)]


def _curves(rows: Rows, spec: Sequence[tuple[str, str, str]]) -> list[Curve]:
    """Return the curves of a panel that have points."""
    return [(name, colour, points) for column, name, colour in spec if (points := _points(rows, column))]


def _best(rows: Rows) -> tuple[float | None, str]:
    """Return the best epoch (the first of equal ones), and a title that names it and its values."""
    for column, name in (("val_loss", "validation"), ("train_loss", "training")):
        if points := _points(rows, column):
            epoch, loss = min(points, key=lambda point: point[1])
            headline = f"Best epoch {epoch:.0f} (dashed line): {name} loss {loss:.4g}"
            for metric in (column for _, spec in _panels(rows) for column, _, _ in spec if column.startswith("val_")):
                at_epoch = dict(_points(rows, metric))
                if epoch in at_epoch and metric != "val_loss":
                    form = "{:.2f} dB" if metric == "val_psnr" else "{:.4f}"
                    headline += f", {metric_name(metric)} " + form.format(at_epoch[epoch])
            return epoch, headline
    return None, "No epoch has a finite loss"


def _grid_of_axes(figure: "Figure", count: int) -> list["Axes"]:
    """Two panels a line; the first takes a whole line if the count is odd."""
    cells = figure.add_gridspec((count + 1) // 2, 2)
    whole = [figure.add_subplot(cells[0, :])] if count % 2 else []
    return whole + [figure.add_subplot(cells[i // 2, i % 2]) for i in range(2 * len(whole), count + len(whole))]


def _draw_panel(axes: "Axes", title: str, curves: list[Curve]) -> None:
    for name, colour, points in curves:
        marker = "o" if len(points) <= DOTTED_EPOCHS else ""
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.6, marker=marker, markersize=3.5, label=name)
    values = [value for _, _, points in curves for _, value in points]
    low, high = min(values), max(values)
    has_log_scale = title == "Loss" or title == RATE or title.startswith("Training")
    if has_log_scale and low > 0 and (title == RATE or high > 4 * low):
        title += " (log scale)"
        _use_log_scale(axes, low, high)
    axes.set_title(title, loc="left", fontsize=12, color=INK)
    axes.set_xlabel("epoch")
    axes.grid(True, color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1:  # beside the title, where it hides no curve
        axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.1)


def _use_log_scale(axes: "Axes", low: float, high: float) -> None:
    """Ticks at 1, 2 and 5 times the powers of ten, in plain decimals; at least two of them are visible."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axes.set_yscale("log")
    axes.set_ylim(low / 1.25, high * 1.25) if high > 4 * low else axes.set_ylim(low / 3, high * 3)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _align_epochs(figure: "Figure", rows: Rows) -> None:
    """Give all panels the same epoch axis, with integer ticks."""
    from matplotlib.ticker import MaxNLocator

    epochs = [epoch for row in rows if (epoch := row.get("epoch")) is not None]
    pad = max(0.5, 0.015 * (max(epochs) - min(epochs)))
    for axes in figure.axes:
        axes.set_xlim(min(epochs) - pad, max(epochs) + pad)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
