"""The HTML page of `aecli eval --report`: a jinja2 template, and the pictures that go with it."""

import base64
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from aecli._version import __version__
from aecli.data.decoding.decode import Pixels
from aecli.errors import printable
from aecli.evaluation.html_report import charts, pictures
from aecli.evaluation.pairing import Pair
from aecli.evaluation.per_image import MetricValues
from aecli.evaluation.report import EvalReport
from aecli.progress import Listener, Notice
from aecli.runtime.distributed import Distributed
from aecli.storage.outputs import check_writable_file, shared_scratch_folder, write_output

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = Path(__file__).parent / "templates"
_HEAT_STEPS = 33  # of the colour map; the browser interpolates linearly between them


@dataclass(frozen=True)
class Page:
    """A page in progress: pictures are added to `scratch` as images are measured, and the main process writes it."""

    path: Path
    scratch: Path

    def add(self, number: int, images: Sequence[Pixels]) -> None:
        """Store the ground truth and the predictions of a pair, uint8 (H, W, 3); may be called from several threads."""
        pictures.store(self.scratch, number, images)

    def write(
        self, truth: str, report: EvalReport, measured: Mapping[int, Pair], values: MetricValues, listen: Listener
    ) -> None:
        """Write the page; raises OutputError.

        `truth` names the ground truth; `measured` are the pairs by the number they were added with, in the order of
        `values`.
        """
        names = [result.name for result in report.results]
        embedded = pictures.embed_or_move(self.scratch, self.path, list(measured), 1 + len(names))
        folder = pictures.folder_beside(self.path)
        if embedded is None:
            listen(Notice(f"the page's pictures are in {folder}: keep them together"))
        data = {
            "names": [printable(pair.name) for pair in measured.values()],
            "sizes": [list(pair.size) for pair in measured.values()],
            "predictions": [printable(name) for name in names],
            "metrics": [
                {"name": m.name, "title": m.name.upper(), "digits": m.digits, "higher": m.higher_is_better}
                for m in report.metrics
            ],
            "values": {m.name: [_json_column(column) for column in values[m.name].T] for m in report.metrics},
            "embedded": embedded,
            "folder": None if embedded else quote(folder.name, errors="surrogateescape"),
            "files": [str(number) for number in measured],
            "view_side": pictures.VIEW_SIDE,
        }
        content = render(truth, report, values, data)
        write_output(self.path, content.encode("utf-8", "backslashreplace"), listen)


@contextmanager
def open_page(path: Path | None, sources: Sequence[str], distributed: Distributed) -> Iterator[Page | None]:
    """Yield a page to fill, the same in every process, or None without a path; scratch files are removed at the end.

    Raises OutputError if the page can't be written to `path`.
    """
    if path is None:
        yield None
        return
    if distributed.is_main_process:
        check_writable_file(path, "--report")
        pictures.check_folder(path, sources)
    with shared_scratch_folder(path, distributed.is_main_process, distributed.broadcast_object) as scratch:
        yield Page(path, scratch)


def render(truth: str, report: EvalReport, values: MetricValues, data: dict[str, Any]) -> str:
    """Fill in the template: every string is escaped, nothing is fetched, and no script but the page's own may run."""
    names = [result.name for result in report.results]
    script = (_TEMPLATES / "report.js").read_text(encoding="utf-8")
    return _environment().get_template("report.html.j2").render(
        truth=truth,
        report=report,
        names=names,
        best={metric.name: report.best(metric) for metric in report.metrics},
        histograms=[charts.draw_histogram(metric, names, values[metric.name]) for metric in report.metrics],
        scatters=charts.draw_scatters(report.metrics, names, values),
        colours=[charts.colour(column) for column in range(len(names))],
        markers=[charts.marker(column) for column in range(len(names))],
        heat=_heat_tables(),
        data=data,
        style=(_TEMPLATES / "report.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=__version__,
    )  # fmt: skip


def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined,
    )  # fmt: skip
    environment.filters["printable"] = printable
    return environment


def _json_column(column: NDArray[np.float64]) -> list[float | None]:
    """Values to six decimals; None for the infinite value of identical images."""
    return [round(value, 6) if math.isfinite(value) else None for value in column.tolist()]


def _heat_tables() -> list[str]:
    """Red, green and blue of the colour map `inferno`, each as the table of an SVG filter."""
    from matplotlib import colormaps

    colours = colormaps["inferno"](np.linspace(0, 1, _HEAT_STEPS))
    return [" ".join(f"{value:.4f}" for value in colours[:, channel]) for channel in range(3)]
