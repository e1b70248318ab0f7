"""The result of `aecli eval`: values per image, their summary, comparisons of predictions, and the report."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from aecli.evaluation.made import ModelFigures
from aecli.evaluation.per_image import MetricValues, finite, with_defaults
from aecli.evaluation.protocol import Protocol
from aecli.evaluation.unpaired import Unpaired
from aecli.metrics.base import Metric
from aecli.metrics.set_metrics import SetDistance, SetMetric
from aecli.metrics.statistics import Comparison, Interval, bootstrap_means, compare


@dataclass(frozen=True)
class Score:
    """One metric of one prediction, over all images measured.

    `mean` and `ci95` leave out infinite values and are None where too few are left (none, fewer than 2); `median` is
    over all and may be infinite. `pooled` and `identical` belong to a metric that has a `pool` (PSNR): the value of
    all images together (None where all are identical), and the count of identical images; else None. `images` is how
    many the mean is over.
    """

    mean: float | None
    ci95: Interval | None
    median: float
    images: int
    pooled: float | None = None
    identical: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Strict JSON: None for infinity, and only the keys that the metric has."""
        fields = asdict(self) | {"median": self.median if math.isfinite(self.median) else None}
        return fields if self.identical is not None else {name: fields[name] for name in ("mean", "ci95", "median")}


@dataclass(frozen=True)
class Result:
    """One prediction's scores, by metric, and its distances to the ground truth as sets, by metric of sets."""

    name: str
    scores: Mapping[str, Score]
    distances: Mapping[str, SetDistance] = field(default_factory=dict)

    def to_json(self, metrics: Iterable[str]) -> dict[str, Any]:
        """Strict JSON: scores of `metrics`, None for those not asked for, and the distances as `eval --samples` has."""
        scores = {name: self.scores[name].to_json() if name in self.scores else None for name in metrics}
        distances = {
            name: each.value if each.ci95 is None else {"value": each.value, "ci95": list(each.ci95)}
            for name, each in self.distances.items()
        }
        return scores | distances


@dataclass(frozen=True)
class PairedComparison:
    """Two predictions, a and b, compared image by image, by metric."""

    a: str
    b: str
    comparisons: Mapping[str, Comparison]

    def swapped(self) -> Self:
        """The same of b and a."""
        return type(self)(self.b, self.a, {name: each.swapped() for name, each in self.comparisons.items()})


@dataclass(frozen=True)
class EvalReport:
    """The result of `aecli eval` on `n` images; `metrics`, and `set_metrics`, are in the order asked for.

    `images` are the names of those measured, `values` the metrics' values of each, and of each of `results`.
    `models` has the figures of those whose predictions were made, by name.
    `conversions` says of each SOURCE what reading did to its images, as `ConversionCounts.to_json` does; `notices` in
    words.
    """

    n: int
    metrics: tuple[Metric, ...]
    results: tuple[Result, ...]
    comparisons: tuple[PairedComparison, ...]
    definitions: Mapping[str, str]
    unpaired: tuple[Unpaired, ...]
    versions: Mapping[str, str]
    protocol: Protocol
    images: tuple[str, ...]
    values: MetricValues = field(compare=False, repr=False)
    models: Mapping[str, ModelFigures] = field(default_factory=dict)
    conversions: Mapping[str, Any] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    set_metrics: tuple[SetMetric, ...] = ()

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The default metrics, and others asked for: the keys of a result in JSON, the columns of a CSV."""
        return with_defaults(metric.name for metric in self.metrics)

    def has_comparable_means(self, metric: Metric) -> bool:
        """Whether the means of all predictions are over the same images."""
        images = {result.name: result.scores[metric.name].images for result in self.results}
        compared = [(pair, pair.comparisons[metric.name].images) for pair in self.comparisons]
        return all(images[pair.a] == images[pair.b] == both for pair, both in compared)

    def best(self, metric: Metric) -> tuple[str, ...]:
        """Names of the best of several predictions by one metric.

        Where all means are over the same images, those of the best mean. Else means are not comparable, and it is those
        that are better than each other prediction, or equal to it on every image: better is who has the better mean
        difference over images where both values are finite, and more images on which it is the better one.
        """
        if len(self.results) < 2:
            return ()
        names = [result.name for result in self.results]
        sign = 1 if metric.higher_is_better else -1
        if self.has_comparable_means(metric):
            means = [result.scores[metric.name].mean for result in self.results]
            top = max((sign * mean for mean in means if mean is not None), default=None)
            return tuple(name for name, mean in zip(names, means, strict=True) if mean is None or sign * mean == top)
        beaten = set()
        for pair in self.comparisons:
            each = pair.comparisons[metric.name]
            difference = None if each.mean_difference is None else sign * each.mean_difference
            if each.wins_a or each.wins_b:  # else they are equal
                if each.wins_a <= each.wins_b or (difference is not None and difference <= 0):
                    beaten.add(pair.a)
                if each.wins_b <= each.wins_a or (difference is not None and difference >= 0):
                    beaten.add(pair.b)
        return tuple(name for name in names if name not in beaten)

    def nearest(self, metric: SetMetric) -> tuple[str, ...]:
        """Names of the predictions, of several, at the least distance to the ground truth."""
        if len(self.results) < 2:
            return ()
        least = min(result.distances[metric.name].value for result in self.results)
        return tuple(result.name for result in self.results if result.distances[metric.name].value == least)

    def to_json(self) -> dict[str, Any]:
        """Strict JSON: no NaN, no infinity; default metrics not asked for are None."""
        return {
            "n": self.n,
            "best": {metric.name: list(self.best(metric)) for metric in self.metrics}
            | {metric.name: list(self.nearest(metric)) for metric in self.set_metrics},
            "results": [
                {"name": result.name}
                | ({"model": self.models[result.name].to_json()} if result.name in self.models else {})
                | result.to_json(self.metric_names)
                for result in self.results
            ],
            "comparisons": [
                {"a": pair.a, "b": pair.b}
                | {
                    name: asdict(pair.comparisons[name]) if name in pair.comparisons else None
                    for name in self.metric_names
                }
                for pair in self.comparisons
            ],
            "definitions": dict(self.definitions),
            "protocol": self.protocol.to_json(),
            "unpaired": [
                {"name": each.name, "prediction": each.prediction, "reason": each.reason} for each in self.unpaired
            ],
            "conversions": dict(self.conversions),
            "notices": list(self.notices),
            "versions": dict(self.versions),
            "per_image": {"names": list(self.images), "values": self._values_by_name()},
        }

    def _values_by_name(self) -> dict[str, dict[str, list[float | None]]]:
        """Return the values of each prediction, by metric, in the order of `images`; None for infinity."""
        return {
            result.name: {name: [*map(finite, table[:, column].tolist())] for name, table in self.values.items()}
            for column, result in enumerate(self.results)
        }


def measure_sets(
    metrics: Sequence[SetMetric], column: int, features: Mapping[str, NDArray[np.float32]]
) -> dict[str, SetDistance]:
    """The distances of a prediction to the ground truth as sets, by metric.

    `features` are of each network (images, 1 + predictions, dim), the ground truth's first; it is the one of `column`.
    """
    distances = {}
    for metric in metrics:
        truth, prediction = (features[metric.features][:, index].astype(np.float64) for index in (0, 1 + column))
        distances[metric.name] = metric.measure(truth, prediction)
    return distances


def summarize_metrics(
    metrics: Sequence[Metric], names: Sequence[str], values: MetricValues
) -> tuple[tuple[Result, ...], tuple[PairedComparison, ...]]:
    """Summarize each prediction, and compare every two predictions, paired by image.

    All bootstrap intervals come from the same resamples of the images.
    """
    if not metrics:
        return tuple(Result(name, {}) for name in names), ()
    pairs = list(combinations(range(len(names)), 2))
    with np.errstate(invalid="ignore"):  # infinity less infinity: two identical images, left out
        differences = {m.name: [values[m.name][:, a] - values[m.name][:, b] for a, b in pairs] for m in metrics}
    columns = [column for m in metrics for column in (*values[m.name].T, *differences[m.name])]
    intervals = iter(bootstrap_means(np.stack(columns, axis=1)))
    scores: list[dict[str, Score]] = [{} for _ in names]
    comparisons: list[dict[str, Comparison]] = [{} for _ in pairs]
    for metric in metrics:
        table = values[metric.name]
        for column, by_metric in enumerate(scores):
            by_metric[metric.name] = _score(metric, table[:, column], next(intervals))
        for (a, b), compared in zip(pairs, comparisons, strict=True):
            compared[metric.name] = compare(table[:, a], table[:, b], metric.higher_is_better, next(intervals))
    return (
        tuple(Result(name, by_metric) for name, by_metric in zip(names, scores, strict=True)),
        tuple(PairedComparison(names[a], names[b], each) for (a, b), each in zip(pairs, comparisons, strict=True)),
    )


def _score(metric: Metric, values: NDArray[np.float64], ci95: Interval | None) -> Score:
    finite = values[np.isfinite(values)]
    return Score(
        mean=float(finite.mean()) if len(finite) else None,
        ci95=ci95,
        median=float(np.median(values)),
        images=len(finite),
        pooled=metric.pool(values) if metric.pool else None,
        identical=int(np.count_nonzero(np.isposinf(values))) if metric.pool else None,
    )
