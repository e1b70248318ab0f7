"""Tables to take away: as Markdown, as LaTeX for a paper, as CSV for a program."""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "[": "{[}",  # would be an option of the \\ before it
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "∞": r"$\infty$",
    "–": "--",
    "²": r"$^2$",
    **{char: f"\\{char}" for char in "&%$#_{}"},
}


@dataclass(frozen=True)
class Cell:
    """A value, what stands in small below it, and whether it is the best of its column."""

    text: str
    under: tuple[str, ...] = ()
    is_best: bool = False


Rows = Sequence[Sequence[Cell]]  # the first column holds names, the others numbers


def as_markdown(headings: Sequence[str], rows: Rows, notes: Sequence[str]) -> str:
    """A table in Markdown, the best values in bold; each of the notes is a paragraph below it."""
    lines = [map(_markdown, headings), ["---", *["---:"] * (len(headings) - 1)]]
    lines += [[_markdown_cell(cell) for cell in row] for row in rows]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), *(f"\n{_markdown(note)}" for note in notes)])


def as_latex(headings: Sequence[str], rows: Rows, notes: Sequence[str]) -> str:
    """A tabular in LaTeX, the best values in bold; the notes are comments above it."""
    lines = [f"{' & '.join(map(_latex_cell, row))} \\\\" for row in rows]
    return "\n".join([
        *(f"% {note}" for note in ["Needs \\usepackage{booktabs}.", *notes]),
        rf"\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}",
        r"\toprule",
        f"{' & '.join(map(_latex, headings))} \\\\",
        r"\midrule",
        *lines,
        r"\bottomrule",
        r"\end{tabular}",
    ])  # fmt: skip


def as_csv(results: Sequence[Mapping[str, Any]]) -> str:
    """The `results` of a JSON document as CSV, a row each; nested values get names such as `psnr_ci95_low`."""
    rows = [dict(_flat(result)) for result in results]
    text = io.StringIO()
    writer = csv.DictWriter(text, dict.fromkeys(name for row in rows for name in row), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = prefix + key
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}_")
        elif key == "ci95":
            low, high = value or (None, None)
            yield from ((f"{name}_low", low), (f"{name}_high", high))
        elif isinstance(value, list):
            yield name, ", ".join(map(str, value))
        elif value is not None or prefix:  # else a metric that was not asked for
            yield name, value


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_|<>]|(?<=\])\()", r"\\\1", text)


def _markdown_cell(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.is_best else _markdown(cell.text)
    return " ".join([text, *map(_markdown, cell.under)])


def _latex(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in text)


def _latex_cell(cell: Cell) -> str:
    text = rf"\textbf{{{_latex(cell.text)}}}" if cell.is_best else _latex(cell.text)
    return " ".join([text, *(rf"{{\scriptsize {_latex(under)}}}" for under in cell.under)])
