"""Results of `eval` and `models` as tables on stdout."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from aecli.cli import console
from aecli.errors import message_of, printable

if TYPE_CHECKING:
    from aecli.evaluation.paired import EvalReport
    from aecli.evaluation.report import PairedComparison
    from aecli.evaluation.sets import SetReport
    from aecli.metrics.base import Metric
    from aecli.runs.catalogue import ModelsReport

_GAP = 2  # blanks after a column
_LEAST_TEXT = 10  # columns of a terminal in which text can be read


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[str | Text]], text_columns: Sequence[int]) -> None:
    """Print a table; the columns that don't hold text hold numbers, which are aligned to the right.

    On a terminal that is too narrow, text is folded but numbers never are, so that none is read as another one.
    """
    cells = [[Text(printable(cell)) if isinstance(cell, str) else cell for cell in row] for row in rows]
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    least = widest = 0
    for column, heading in enumerate(headings):
        width = max(cell_len(str(cell)) for cell in (heading, *(row[column] for row in cells)))
        widest += width + _GAP
        is_text = column in text_columns
        least += (min(width, _LEAST_TEXT) if is_text else width) + _GAP
        table.add_column(Text(heading), justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold")
    for row in cells:
        table.add_row(*row)
    stdout = console.stdout()
    stdout.width = max(least, min(widest, stdout.width)) if stdout.is_terminal else widest
    stdout.print(table)


def _print_definitions(definitions: Mapping[str, str]) -> None:
    stdout = console.stdout()
    stdout.print()
    for name, definition in definitions.items():
        stdout.print(Text(f"{name}: {printable(definition)}", style="dim"), soft_wrap=not stdout.is_terminal)


def print_evaluation(report: "EvalReport") -> None:
    """Print the metrics of each prediction, comparisons of every two, and the metrics' definitions."""
    has_several = len(report.results) > 1
    best = {metric.name: report.best(metric) for metric in report.metrics}
    rows: list[list[str | Text]] = []
    for result in report.results:
        means, intervals, counts = [], [], []
        for metric in report.metrics:
            score = result.scores[metric.name]
            is_best = result.name in best[metric.name]
            mean = "identical" if score.mean is None else metric.format(score.mean)
            means.append(Text(f"{mean}*", style="bold") if is_best else Text(f"{mean} "))
            intervals.append(Text(f"{metric.format_interval(score.ci95)} ", style="dim"))
            counts.append(Text(f"{score.images} of {report.n} " if score.images < report.n else "", style="dim"))
        rows += [[result.name, *means], ["", *intervals]]
        if any(counts):
            rows.append(["images", *counts])
    _print_table(["", *(metric.title for metric in report.metrics)], rows, text_columns=[0])
    images = f"{report.n} image{'s' if report.n != 1 else ''}"
    console.print_line(f"{images}; means with 95 % intervals below them{'; * best' if has_several else ''}")
    for result in report.results:
        if identical := next((score.identical for score in result.scores.values() if score.identical), None):
            console.print_line(f"{result.name}: {identical} identical, left out of the mean PSNR")
    for metric in report.metrics:
        if not report.has_comparable_means(metric):
            marked = "* is better than each other one pair by pair" if best[metric.name] else "none is marked best"
            console.print_line(f"{metric.name.upper()}: means are over different images and don't compare; {marked}")
    for pair in report.comparisons:
        _print_comparison(pair, report.metrics, report.n)
    _print_definitions(report.definitions)


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


def print_sets(report: "SetReport") -> None:
    """Print the distances of each set to the real images, and their definitions."""
    headings = ["", f"{report.kernel_name} ↓", f"{report.frechet_name} ↓", "prec.", "recall", "dens.", "cover."]
    has_train = any(result.memorised for result in report.results)
    rows: list[list[str | Text]] = []
    for result in report.results:
        found = result.manifold
        fractions = (found.precision, found.recall, found.density, found.coverage)
        nearest = [_number(result.memorised.ratio if result.memorised else None, 3)] if has_train else []
        rows.append([result.name, f"{result.kernel_distance:.4f}", f"{result.frechet_distance:.2f}",
                     *(f"{fraction:.3f}" for fraction in fractions), *nearest])  # fmt: skip
        interval = Text(f"[{result.ci95[0]:.4f}, {result.ci95[1]:.4f}]", style="dim")
        rows.append(["", interval, *[""] * (len(rows[-1]) - 2)])
    _print_table([*headings, *(["nearest"] if has_train else [])], rows, text_columns=[0])
    counts = ", ".join(f"{result.name} {result.n:,}" for result in report.results)
    console.print_line(f"{report.n:,} real images, {counts}; 95 % intervals")
    _print_definitions(report.definitions)


def print_models(report: "ModelsReport") -> None:
    """Print the registry, the runs and the machine."""
    rows = [
        [model.name, "", "", "", message_of(model.error)] if model.error else
        [model.name, f"{model.parameters:,}", "×".join(map(str, model.latent_shape or ())), f"{model.gflop:.1f}",
         model.target]
        for model in report.models
    ]  # fmt: skip
    headings = ["model", "parameters", "latent", f"GFLOP at {report.image_size}²", "class"]
    _print_table(headings, rows, text_columns=[0, 4])
    console.print_line("")
    if report.runs:
        runs = [
            [run.path, run.model, f"{run.image_size}²", str(run.epochs), _number(run.best_epoch, 0),
             _number(run.val_psnr, 2), _number(run.val_ssim, 4), _ago(run.touched)]
            for run in report.runs
        ]  # fmt: skip
        headings = ["run", "model", "image", "epochs", "best", "PSNR ↑", "SSIM ↑", "changed"]
        _print_table(headings, runs, text_columns=[0, 1])
        for run in report.runs:
            for line in (run.error or "").splitlines():
                console.print_line(line)
        console.print_line("")
    for work, placement in (("training", report.training), ("everything else", report.inference)):
        console.print_line(
            f"{work} runs on {placement['device']} in {placement['precision']}, {placement['memory_format']}"
        )


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
