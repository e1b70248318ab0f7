"""Charts of the values per image, drawn by matplotlib as SVG in the page's own text colour."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from aecli.errors import single_line
from aecli.evaluation.per_image import MetricValues
from aecli.figures.plotting import BLUE, ORANGE, quiet_matplotlib
from aecli.metrics.base import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, the colours with a contrast of at least 3:1 on white and on black; then markers differ.
COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7")
MARKERS = (("o", "●"), ("^", "▲"), ("s", "■"), ("D", "◆"), ("v", "▼"))
MAX_POINTS = 2000  # that can be clicked; more are rasterized into one picture within the SVG
BINS = 40
_INK = "#010203"  # a colour that nothing else has, replaced by `currentColor` in the SVG


@dataclass(frozen=True)
class Chart:
    """An SVG and its description; `overlays` if it shows all predictions in one frame."""

    title: str
    svg: str
    overlays: bool = False


def colour(column: int) -> str:
    """The colour of a prediction, the same in every chart."""
    return COLOURS[column % len(COLOURS)]


def marker(column: int) -> str:
    """The character that looks like a prediction's points."""
    return MARKERS[column % len(MARKERS)][1]


def draw_scatters(metrics: Sequence[Metric], names: Sequence[str], values: MetricValues) -> list[Chart]:
    """Scatter every two metrics, all predictions in one frame, and every two predictions, for each metric."""
    charts = []
    for x, y in combinations(metrics, 2):
        columns = enumerate(zip(values[x.name].T, values[y.name].T, strict=True))
        series = [(column, *points) for column, points in columns]
        charts.append(_scatter(f"{y.title} against {x.title}", x.title, y.title, series, overlays=True))
    labels = [single_line(name) for name in names]
    for metric in metrics:
        for a, b in combinations(range(len(names)), 2):
            title = f"{metric.title}: {labels[a]} against {labels[b]}"
            x_label, y_label = (f"{metric.title} of {labels[column][:60]}" for column in (b, a))
            points = (a, values[metric.name][:, b], values[metric.name][:, a])
            charts.append(_scatter(title, x_label, y_label, [points], overlays=False))
    return charts


def draw_histogram(metric: Metric, names: Sequence[str], values: NDArray[np.float64]) -> Chart:
    """Draw a histogram per prediction of its values (images, predictions), one below the other over the same bins."""
    finite = values[np.isfinite(values)]
    edges = np.histogram_bin_edges(finite, BINS) if len(finite) else np.linspace(0, 1, BINS + 1)
    title = f"Histogram of {metric.title}"
    with quiet_matplotlib():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.4, 0.7 + 1.15 * len(names)), layout="constrained")
        panels = np.ravel(figure.subplots(len(names), sharex=True))
        for column, (axes, name) in enumerate(zip(panels, names, strict=True)):
            kept = values[np.isfinite(values[:, column]), column]
            axes.hist(kept, bins=edges, color=colour(column))
            if len(kept):
                axes.axvline(kept.mean(), color=_INK, linewidth=1, linestyle=(0, (4, 3)))
            axes.set_title(single_line(name)[:60], loc="left", fontsize=9, color=_INK, parse_math=False)
            _style_axes(axes)
        axes.set_xlabel(f"{metric.title}, images by value; the dashed line is the mean", color=_INK)
        return Chart(title, _svg(figure, title))


def _scatter(
    title: str,
    x_label: str,
    y_label: str,
    series: Sequence[tuple[int, NDArray[np.float64], NDArray[np.float64]]],
    overlays: bool,
) -> Chart:
    """Draw the points of each series (column, x, y) as a group whose gid lists their images, in order.

    Without `overlays`, both axes have the same scale, and their diagonal is drawn.
    """
    with quiet_matplotlib():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.4, 3.9 if overlays else 5.0), dpi=150, layout="constrained")
        axes = figure.subplots()
        many = sum(len(x) for _, x, _ in series) > MAX_POINTS
        for column, x, y in series:
            images = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
            shape = MARKERS[column % len(MARKERS)][0]
            points = axes.scatter(x[images], y[images], s=4 if many else 14, marker=shape, color=colour(column),
                                  alpha=0.45 if many else 0.7, linewidths=0, rasterized=many)  # fmt: skip
            if not many:
                points.set_gid("points-" + ".".join(map(str, images)))
        if not overlays:
            low, high = min(axes.get_xlim()[0], axes.get_ylim()[0]), max(axes.get_xlim()[1], axes.get_ylim()[1])
            axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
            axes.axline((low, low), (high, high), color=_INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xlabel(x_label, color=_INK, parse_math=False)
        axes.set_ylabel(y_label, color=_INK, parse_math=False)
        _style_axes(axes)
        return Chart(title, _svg(figure, title), overlays)


def _style_axes(axes: "Axes") -> None:
    axes.tick_params(colors=_INK, labelsize=8)
    axes.xaxis.label.set_fontsize(9)
    axes.yaxis.label.set_fontsize(9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)
    axes.patch.set_alpha(0)


def _svg(figure: "Figure", title: str) -> str:
    """The figure as an <svg> element: in the page's text colour, text kept as text, ids unique within the page."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    figure.patch.set_alpha(0)
    text = StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None})  # type: ignore[no-untyped-call]
    svg = text.getvalue()[text.getvalue().index("<svg") :].replace(_INK, "currentColor")
    prefix = f"c{hashlib.sha256(title.encode()).hexdigest()[:12]}"
    svg = re.sub(r'(\bid="|url\(#|href="#)(?!points-)', rf"\g<1>{prefix}-", svg)
    return re.sub(r'\bid="points-([\d.]*)"', r'class="points" data-images="\1"', svg)
