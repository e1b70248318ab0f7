"""Results of `eval` and `models` as tables on stdout."""

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from aecli.cli import console
from aecli.cli.formats import Cell, Rows, as_csv, as_latex, as_markdown
from aecli.cli.stand_ins import stand_ins
from aecli.errors import count_of, message_of, printable

if TYPE_CHECKING:
    from aecli.evaluation.comparing import CompareReport
    from aecli.evaluation.paired import EvalReport
    from aecli.evaluation.report import PairedComparison, Result
    from aecli.evaluation.sets import SetReport
    from aecli.inference.anomaly_scores import ScoreReport
    from aecli.metrics.base import Metric
    from aecli.metrics.set_metrics import SetMetric
    from aecli.models.base import Kept
    from aecli.runs.catalogue import ModelsReport

_MOST_COMPARED = 4  # predictions of which every two are compared on the terminal
_MOST_SCORED = 10  # images of a ranking that are shown
_GAP = 2  # blanks after a column
_LEAST_TEXT = 10  # columns of a terminal in which text can be read


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[str | Text]], text_columns: Sequence[int]) -> None:
    """Print a table; the columns that don't hold text hold numbers, which are aligned to the right.

    On a terminal that is too narrow, text is folded but numbers never are, so that none is read as another one.
    """
    stdout = console.stdout()
    lacking = stand_ins(stdout.encoding)  # put in here, before widths are measured
    headings = [heading.translate(lacking) for heading in headings]
    cells = [
        [Text(printable(cell).translate(lacking)) if isinstance(cell, str) else cell for cell in row] for row in rows
    ]
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    least = widest = 0
    for column, (heading, width) in enumerate(zip(headings, _widths(headings, cells), strict=True)):
        widest += width + _GAP
        is_text = column in text_columns
        least += (min(width, _LEAST_TEXT) if is_text else width) + _GAP
        table.add_column(Text(heading), justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold")
    for row in cells:
        table.add_row(*row)
    stdout.width = max(least, min(widest, stdout.width)) if stdout.is_terminal else widest
    stdout.print(table)


def _widths(headings: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> list[int]:
    """Return how many columns of a terminal each column of a table takes."""
    columns = zip(headings, *rows, strict=True)
    return [max(cell_len(str(cell)) for cell in column) for column in columns]


def _print_cells(headings: Sequence[str], rows: Rows) -> None:
    """Print a table of cells: * marks the best, and what is under a value is dim, in a line of its own.

    On a terminal that is too narrow for all columns there are several tables, each of which begins with the names.
    """
    margin = " " if any(cell.is_best for row in rows for cell in row) else ""
    lines: list[list[str | Text]] = []
    for name, *cells in rows:
        values = [Text(f"{cell.text}*", style="bold") if cell.is_best else Text(cell.text + margin) for cell in cells]
        lines.append([name.text, *values])
        for under in zip_longest(*(cell.under for cell in cells), fillvalue=""):
            lines.append(["", *(Text(text + margin, style="dim") for text in under)])
    for index, columns in enumerate(_groups_of_columns(headings, lines)):
        if index:
            console.stdout().print()
        shown = [0, *columns]
        part = [line for line in ([line[column] for column in shown] for line in lines) if any(map(str, line))]
        _print_table([headings[column] for column in shown], part, text_columns=[0])


def _groups_of_columns(headings: Sequence[str], lines: Sequence[Sequence[str | Text]]) -> list[list[int]]:
    """Return the columns after the first, which is text, in as few groups as a terminal has room for."""
    widths = [width + _GAP for width in _widths(headings, lines)]
    stdout = console.stdout()
    room = stdout.width - min(widths[0], _LEAST_TEXT + _GAP) if stdout.is_terminal else sum(widths)
    groups: list[list[int]] = [[]]
    left = room
    for column in range(1, len(headings)):
        if groups[-1] and widths[column] > left:
            groups.append([])
            left = room
        groups[-1].append(column)
        left -= widths[column]
    return groups


def _print_formatted(
    format: str, headings: Sequence[str], rows: Rows, notes: Sequence[str], results: Sequence[Mapping[str, Any]]
) -> None:
    if format == "csv":
        text = as_csv(results)
    else:
        text = (as_markdown if format == "markdown" else as_latex)(headings, rows, [*map(printable, notes)])
    for line in text.split("\n"):
        console.print_line(line)


def _definition_lines(definitions: Mapping[str, str]) -> list[str]:
    return [f"{name}: {printable(definition)}" for name, definition in definitions.items()]


def _print_definitions(definitions: Mapping[str, str]) -> None:
    console.stdout().print()
    for line in _definition_lines(definitions):
        _print_dim(line)


def _print_dim(line: str) -> None:
    stdout = console.stdout()
    stdout.print(Text(line, style="dim"), soft_wrap=not stdout.is_terminal)


def print_evaluation(report: "EvalReport", format: str = "text") -> None:
    """Print the metrics of each prediction, comparisons of predictions (of text alone), and the definitions."""
    best = {metric.name: report.best(metric) for metric in report.metrics}
    headings = ["", *_figure_headings(report, format)]
    headings += [metric.title for metric in (*report.metrics, *report.set_metrics)]
    rows = [
        [Cell(printable(result.name)), *_figure_cells(report, result, format),
         *(_score_cell(report, result, metric, best) for metric in report.metrics),
         *(_distance_cell(report, result, metric) for metric in report.set_metrics)]
        for result in report.results
    ]  # fmt: skip
    if format != "text":
        definitions = {name: text for name, text in report.definitions.items() if name != "comparisons"}
        notes = [*_notes(report, best, "best in bold"), *_definition_lines(definitions), str(report.protocol)]
        _print_formatted(format, headings, rows, notes, report.to_json()["results"])
        return
    _print_cells(headings, rows)
    for line in _notes(report, best, "* best"):
        console.print_line(line)
    _print_comparisons(report)
    _print_definitions(report.definitions)
    _print_dim(str(report.protocol))


def _figure_headings(report: "EvalReport", format: str) -> list[str]:
    if not report.models:
        return []
    return ["keeps"] if format == "text" else ["keeps", "parameters", "images/s"]


def _figure_cells(report: "EvalReport", result: "Result", format: str) -> list[Cell]:
    """What a model keeps, its parameters and images a second: in a column each, or in the text of a terminal in one."""
    if not report.models:
        return []
    figures = report.models.get(result.name)
    reduced = [figures.precision] if figures and figures.precision != "fp32" else []
    if format == "text":
        if figures is None:
            return [Cell("")]
        lines = [f"{_short_count(figures.parameters)} params", f"{_rate(figures.images_per_s)} img/s", *reduced]
        return [Cell(_kept(figures.kept), tuple(lines))]
    if figures is None:
        return [Cell("")] * 3
    return [
        Cell(_kept(figures.kept)),
        Cell(f"{figures.parameters:,}"),
        Cell(_rate(figures.images_per_s), tuple(reduced)),
    ]


def _rate(images_per_s: float) -> str:
    return f"{images_per_s:,.0f}" if images_per_s >= 10 else f"{images_per_s:.2g}"


def _short_count(count: int) -> str:
    """Return a number in three digits, with k, M or G for thousands, millions and more."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g}{letter}"
    return str(count)


def _score_cell(report: "EvalReport", result: "Result", metric: "Metric", best: Mapping[str, Sequence[str]]) -> Cell:
    score = result.scores[metric.name]
    count = f"{score.images} of {report.n} images" if score.images < report.n else ""
    under = (metric.format_interval(score.ci95), count)
    mean = "identical" if score.mean is None else metric.format(score.mean)
    return Cell(mean, tuple(filter(None, under)), result.name in best[metric.name])


def _distance_cell(report: "EvalReport", result: "Result", metric: "SetMetric") -> Cell:
    found = result.distances[metric.name]
    under = tuple(filter(None, [metric.format_interval(found.ci95)]))
    return Cell(metric.format(found.value), under, result.name in report.nearest(metric))


def _notes(report: "EvalReport", best: Mapping[str, Sequence[str]], mark: str) -> Iterator[str]:
    """Yield what is below the table: how many images, which are left out of a mean, what is marked as best."""
    images = f"{report.n} image{'s' if report.n != 1 else ''}"
    yield f"{images}; means with 95 % intervals{f'; {mark}' if len(report.results) > 1 else ''}"
    for name, figures in report.models.items():
        if figures.floor_of:
            yield f"{name}: the floor of {', '.join(figures.floor_of)}"
    for result in report.results:
        identical = {name.upper(): score.identical for name, score in result.scores.items() if score.identical}
        if identical:
            yield f"{result.name}: {max(identical.values())} identical, left out of the mean {' and '.join(identical)}"
    for metric in report.metrics:
        if not report.has_comparable_means(metric):
            marked = "the best one beats every other one pair by pair" if best[metric.name] else "none is best"
            yield f"{metric.name.upper()}: means are over different images and don't compare; {marked}"


def _print_comparisons(report: "EvalReport") -> None:
    """Print every two predictions compared; of more than `_MOST_COMPARED`, the best one with each other."""
    pairs = report.comparisons
    if pairs and len(report.results) > _MOST_COMPARED:
        found = next(((metric, names[0]) for metric in report.metrics if (names := report.best(metric))), None)
        metric, name = found or (None, report.results[0].name)
        who = f"{name}, best by {metric.name.upper()}," if metric else name
        pairs = tuple(
            pair if pair.a == name else pair.swapped() for pair in report.comparisons if name in (pair.a, pair.b)
        )
        console.print_line("")
        console.print_line(f"{who} with every other one (all {len(report.comparisons)} pairs: --json, --report):")
    for pair in pairs:
        _print_comparison(pair, report.metrics, report.n)


def print_comparisons(report: "CompareReport", format: str = "text") -> None:
    """Print the differences of predictions of two evaluations, image by image."""
    protocol = f"protocol {printable(str(report.protocol.get('sha256')))}"
    note = f"{count_of(report.n, 'image')}; mean differences with 95 % intervals; {protocol}"
    if format == "text":
        for pair in report.comparisons:
            _print_comparison(pair, report.metrics, report.n)
        console.print_line("")
        console.print_line(note)
        return
    rows = []
    for pair in report.comparisons:
        cells = [Cell(printable(f"{pair.a} - {pair.b}"))]
        for metric in report.metrics:
            found = pair.comparisons[metric.name]
            wins = f"better on {found.wins_a}, worse on {found.wins_b}"
            under = filter(None, (metric.format_interval(found.ci95), wins))
            cells.append(Cell(metric.format_difference(found.mean_difference), tuple(under)))
        rows.append(cells)
    headings = ["", *(metric.title for metric in report.metrics)]
    _print_formatted(format, headings, rows, [note], report.to_json()["comparisons"])


def _print_comparison(pair: "PairedComparison", metrics: Sequence["Metric"], images: int) -> None:
    console.print_line("")
    console.print_line(f"{pair.a} - {pair.b}, image by image:")
    titles = max(len(metric.title) for metric in metrics)
    for metric in metrics:
        found = pair.comparisons[metric.name]
        difference, interval = metric.format_difference(found.mean_difference), metric.format_interval(found.ci95)
        wins = f"better on {found.wins_a}, worse on {found.wins_b}, equal on {found.ties}"
        over = f" over {found.images} of {images}" if found.images < images else ""
        console.print_line(f"  {metric.title:{titles}} {difference:>8} {interval}{over}  {wins}")


def print_sets(report: "SetReport", format: str = "text") -> None:
    """Print the distances of each set to the real images, and their definitions."""
    headings = ["", f"{report.kernel_name} ↓", f"{report.frechet_name} ↓", "prec.", "recall", "dens.", "cover."]
    has_train = any(result.memorised for result in report.results)
    headings += ["nearest"] if has_train else []
    rows = []
    for result in report.results:
        found = result.manifold
        fractions = (found.precision, found.recall, found.density, found.coverage)
        nearest = [_number(result.memorised.ratio if result.memorised else None, 3)] if has_train else []
        interval = f"[{result.ci95[0]:.4f}, {result.ci95[1]:.4f}]"
        numbers = [f"{result.frechet_distance:.2f}", *(f"{fraction:.3f}" for fraction in fractions), *nearest]
        rows.append(
            [Cell(printable(result.name)), Cell(f"{result.kernel_distance:.4f}", (interval,)), *map(Cell, numbers)]
        )
    counts = ", ".join(f"{result.name} {result.n:,}" for result in report.results)
    note = f"{report.n:,} real images, {counts}; 95 % intervals"
    if format != "text":
        notes = [note, *_definition_lines(report.definitions)]
        _print_formatted(format, headings, rows, notes, report.to_json()["results"])
        return
    _print_cells(headings, rows)
    console.print_line(note)
    _print_definitions(report.definitions)


def print_scores(report: "ScoreReport") -> None:
    """Print the worst images of a ranking, and how well the scores tell normal ones from others."""
    shown = report.images[:_MOST_SCORED]
    has_labels = any(each.label for each in report.images)
    headings = ["", *(["label"] if has_labels else []), "MSE ↓", "PSNR ↑", "LPIPS ↓"]
    rows = [
        [each.name, *([each.label] if has_labels else []), f"{each.mse:.2f}",
         f"{each.psnr:.2f}" if math.isfinite(each.psnr) else "∞", f"{each.lpips:.4f}"]
        for each in shown
    ]  # fmt: skip
    _print_table(headings, rows, text_columns=[0, 1] if has_labels else [0])
    console.print_line(f"the {len(shown)} worst of {count_of(len(report.images), 'image')} by {report.by.upper()}")
    for name, found in report.auroc.items():
        console.print_line(
            f"AUROC by {name.upper()} {found.value:.4f} [{found.ci95[0]:.4f}, {found.ci95[1]:.4f}]: "
            f"{found.anomalous:,} others among {found.normal:,} normal"
        )
    _print_definitions(report.definitions)


def print_models(report: "ModelsReport") -> None:
    """Print the registry, the runs and the machine."""
    rows = [
        [model.name, "", "", "", "", message_of(model.error)] if model.error else
        [model.name, f"{model.parameters:,}", "×".join(map(str, model.latent_shape or ())), _kept(model.kept),
         f"{model.gflop:.1f}", model.target]
        for model in report.models
    ]  # fmt: skip
    headings = ["model", "parameters", "latent", "keeps", f"GFLOP at {report.image_size}²", "class"]
    _print_table(headings, rows, text_columns=[0, 5])
    console.print_line("")
    if report.runs:
        runs = [
            [run.path, run.model, f"{run.image_size}²", str(run.epochs), _number(run.best_epoch, 0),
             _kept(run.kept), _number(run.val_psnr, 2), _number(run.val_ssim, 4), _ago(run.touched)]
            for run in report.runs
        ]  # fmt: skip
        headings = ["run", "model", "image", "epochs", "best", "keeps", "PSNR ↑", "SSIM ↑", "changed"]
        _print_table(headings, runs, text_columns=[0, 1])
        for run in report.runs:
            for line in (run.error or "").splitlines():
                console.print_line(line)
        console.print_line("")
    for work, placement in (("training", report.training), ("everything else", report.inference)):
        console.print_line(
            f"{work} runs on {placement['device']} in {placement['precision']}, {placement['memory_format']}"
        )


def _kept(kept: "Kept | None") -> str:
    """What a model keeps, in few columns."""
    if kept is None:
        return "–"
    return str(kept) if kept.bits_per_pixel is None else f"{kept.bits_per_pixel:.3g} bpp"


def _ago(moment: str) -> str:
    """How long ago an ISO 8601 moment was, or from two days on its date."""
    then = datetime.fromisoformat(moment)
    seconds = (datetime.now(then.tzinfo) - then).total_seconds()
    if not 0 <= seconds < 2 * 86400:
        return then.strftime("%Y-%m-%d")
    if seconds < 60:
        return "just now"
    return f"{seconds // 60:.0f} min ago" if seconds < 2 * 3600 else f"{seconds // 3600:.0f} h ago"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
