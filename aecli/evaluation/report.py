"""What `aecli eval` found: a number an image, the scores that sum them up, comparisons, and the report of it all."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aecli.configs import METRICS
from aecli.evaluation.pairing import Unpaired
from aecli.metrics.registry import Metric
from aecli.metrics.statistics import Comparison, Interval, bootstrap_means, compare

# A metric's name -> its numbers, float64 (images, predictions).
Numbers = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Score:
    """One metric of one prediction, over all images measured.

    `mean` and `ci95` leave out infinite numbers and are None where too few are left (none, fewer than 2); `median` is
    over all and may be infinite. `pooled` and `identical` belong to a metric that has a `pool` (PSNR): the one number
    of all images together (None where all are identical), and how many images are identical; else None.
    """

    mean: float | None
    ci95: Interval | None
    median: float
    pooled: float | None = None
    identical: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The score without infinities, and without what the metric has not."""
        fields = asdict(self) | {"median": self.median if math.isfinite(self.median) else None}
        return fields if self.identical is not None else {name: fields[name] for name in ("mean", "ci95", "median")}


@dataclass(frozen=True)
class Result:
    """One prediction's scores, by metric."""

    name: str
    scores: Mapping[str, Score]


@dataclass(frozen=True)
class PairedComparison:
    """Two predictions, a and b, compared image by image, by metric."""

    a: str
    b: str
    comparisons: Mapping[str, Comparison]


@dataclass(frozen=True)
class EvalReport:
    """What `aecli eval` found on `n` images; `metrics` are those measured, in the order asked for."""

    n: int
    metrics: tuple[Metric, ...]
    results: tuple[Result, ...]
    comparisons: tuple[PairedComparison, ...]
    definitions: Mapping[str, str]
    unpaired: tuple[Unpaired, ...]
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """The report as strict JSON holds it: no NaN, no infinity; metrics not asked for are null."""
        return {
            "n": self.n,
            "results": [
                {"name": result.name}
                | {name: result.scores[name].to_json() if name in result.scores else None for name in METRICS}
                for result in self.results
            ],
            "comparisons": [
                {"a": versus.a, "b": versus.b}
                | {name: asdict(versus.comparisons[name]) if name in versus.comparisons else None for name in METRICS}
                for versus in self.comparisons
            ],
            "definitions": dict(self.definitions),
            "unpaired": [
                {"name": each.name, "prediction": each.prediction, "reason": each.reason} for each in self.unpaired
            ],
            "versions": dict(self.versions),
        }


def sum_up(
    metrics: Sequence[Metric], names: Sequence[str], numbers: Numbers
) -> tuple[tuple[Result, ...], tuple[PairedComparison, ...]]:
    """The scores of each prediction, and of every two predictions the comparison, paired by image.

    All bootstrap intervals come from the same resamples of the images.
    """
    duels = list(combinations(range(len(names)), 2))
    with np.errstate(invalid="ignore"):  # infinity less infinity: two identical images, left out
        differences = {m.name: [numbers[m.name][:, a] - numbers[m.name][:, b] for a, b in duels] for m in metrics}
    columns = [column for m in metrics for column in (*numbers[m.name].T, *differences[m.name])]
    intervals = iter(bootstrap_means(np.stack(columns, axis=1)))
    scores: list[dict[str, Score]] = [{} for _ in names]
    comparisons: list[dict[str, Comparison]] = [{} for _ in duels]
    for metric in metrics:
        values = numbers[metric.name]
        for column, found in enumerate(scores):
            found[metric.name] = _score(metric, values[:, column], next(intervals))
        for (a, b), duel in zip(duels, comparisons, strict=True):
            duel[metric.name] = compare(values[:, a], values[:, b], metric.higher_is_better, next(intervals))
    return (
        tuple(Result(name, found) for name, found in zip(names, scores, strict=True)),
        tuple(PairedComparison(names[a], names[b], duel) for (a, b), duel in zip(duels, comparisons, strict=True)),
    )


def _score(metric: Metric, values: NDArray[np.float64], ci95: Interval | None) -> Score:
    finite = values[np.isfinite(values)]
    return Score(
        mean=float(finite.mean()) if len(finite) else None,
        ci95=ci95,
        median=float(np.median(values)),
        pooled=metric.pool(values) if metric.pool else None,
        identical=int(np.count_nonzero(np.isposinf(values))) if metric.pool else None,
    )


def best_names(report: EvalReport, metric: Metric) -> list[str]:
    """Names of the best predictions; one whose images are all identical has no mean, and none is better."""
    scores = {result.name: result.scores[metric.name] for result in report.results}
    means = {name: math.inf if score.mean is None else score.mean for name, score in scores.items()}
    top = (max if metric.higher_is_better else min)(means.values())
    return [name for name, mean in means.items() if mean == top]


def per_image_csv(images: Sequence[str], predictions: Sequence[str], numbers: Numbers) -> bytes:
    """A CSV row an image and prediction: name, prediction, a column a metric (empty where not asked for)."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)  # a bare \r ends a line where it is read
    rows.writerow(["name", "prediction", *METRICS])
    for i, image in enumerate(images):
        for j, prediction in enumerate(predictions):
            cells = [repr(float(numbers[name][i, j])) if name in numbers else "" for name in METRICS]
            (quoted if "\r" in image + prediction else rows).writerow([image, prediction, *cells])
    # File names need not be text in any encoding; what they are in bytes goes into the file as it is.
    return text.getvalue().encode("utf-8", "surrogateescape")
