"""`aecli compare`: two evaluations, made apart, are compared image by image from what `eval --json` wrote."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aecli.configs import CompareConfig, EvalConfig
from aecli.configs.checks import IMAGE_METRICS
from aecli.errors import DataError, message_of, name_examples
from aecli.evaluation.protocol import differing_fields
from aecli.evaluation.report import PairedComparison, summarize_metrics
from aecli.metrics.base import Metric
from aecli.metrics.registry import build_metrics
from aecli.storage.schema import Schema, checked, is_object, is_text, nested
from aecli.storage.strict_json import is_number, read_json

_HINT = "name two files that `aecli eval --json > FILE` wrote"
_SHOWN_FIELDS = 5


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_text, value)) and len(set(value)) == len(value)


def _is_table(value: Any) -> bool:
    """Whether a value is prediction → metric → a list of numbers or null."""
    return is_object(value) and all(
        is_object(by_metric)
        and all(isinstance(column, list) and all(x is None or is_number(x) for x in column)
                for column in by_metric.values())
        for by_metric in value.values()
    )  # fmt: skip


@dataclass(frozen=True)
class _PerImage(Schema):
    names: list[str] = checked(_is_names)
    values: dict[str, dict[str, list[float | None]]] = checked(_is_table)


@dataclass(frozen=True)
class _Evaluation(Schema):
    """What is read of the JSON of `aecli eval`."""

    protocol: dict[str, Any] = checked(is_object)
    per_image: _PerImage = nested(_PerImage)


@dataclass(frozen=True)
class CompareReport:
    """The comparisons of predictions of two evaluations over the same `n` images; `protocol` is that of both, as JSON.

    A prediction is called by its name, and by its file too where both have one of that name.
    """

    files: tuple[str, str]
    n: int
    metrics: tuple[Metric, ...]
    comparisons: tuple[PairedComparison, ...]
    protocol: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Strict JSON."""
        comparisons = [
            {"a": pair.a, "b": pair.b} | {name: asdict(found) for name, found in pair.comparisons.items()}
            for pair in self.comparisons
        ]
        return {"files": [*self.files], "n": self.n, "comparisons": comparisons, "protocol": dict(self.protocol)}


def compare_evaluations(config: CompareConfig) -> CompareReport:
    """Compare the predictions of two evaluations that have the same name, or, if none has, each with each.

    Raises:
        DataError: a file is not the JSON of an evaluation, or they have other protocols or other images.
    """
    a, b = _read(config.first), _read(config.second)
    _require_same(config, a, b)
    by_name = {name: index for index, name in enumerate(b.per_image.names)}
    order = np.array([by_name[name] for name in a.per_image.names])
    metrics = _metrics(config.first, a)
    columns: dict[str, list[NDArray[np.float64]]] = {metric.name: [] for metric in metrics}
    for evaluation, path, rows in ((a, config.first, slice(None)), (b, config.second, order)):
        for prediction, by_metric in evaluation.per_image.values.items():
            for metric in metrics:
                columns[metric.name].append(_values(path, metric, prediction, by_metric, len(order))[rows])
    ours, theirs = list(a.per_image.values), list(b.per_image.values)
    common = set(ours) & set(theirs)
    labels = [*(_label(name, config.first, common) for name in ours),
              *(_label(name, config.second, common) for name in theirs)]  # fmt: skip
    wanted = {
        (labels[i], labels[len(ours) + j])
        for i, one in enumerate(ours)
        for j, other in enumerate(theirs)
        if one == other or not common
    }
    values = {name: np.stack(found, axis=1) for name, found in columns.items()}
    _, pairs = summarize_metrics(metrics, labels, values)
    chosen = tuple(pair for pair in pairs if (pair.a, pair.b) in wanted)
    return CompareReport((str(config.first), str(config.second)), len(order), metrics, chosen, a.protocol)


def _read(path: Path) -> _Evaluation:
    try:
        return _Evaluation.from_document(read_json(path))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}\nhint: {_HINT}") from error
    except ValueError as error:
        raise DataError(f"{path} is not the JSON of an evaluation: {message_of(error)}\nhint: {_HINT}") from error


def _require_same(config: CompareConfig, a: _Evaluation, b: _Evaluation) -> None:
    """Raise DataError unless both have one protocol and the same images."""
    if fields := list(differing_fields(a.protocol, b.protocol)):
        shown = [f"{name}{_both(name, a.protocol, b.protocol)}" for name in fields[:_SHOWN_FIELDS]]
        more = ", …" if len(fields) > _SHOWN_FIELDS else ""
        raise DataError(
            f"{config.first} and {config.second} have other protocols: {message_of(', '.join(shown))}{more}\n"
            "hint: measure both with the same options, on the same images"
        )
    ours, theirs = set(a.per_image.names), set(b.per_image.names)
    if ours != theirs:
        alone = ours - theirs
        raise DataError(
            f"{config.first} and {config.second} are over other images: {len(alone):,} of {len(ours):,} are in one "
            f"alone ({name_examples(sorted(alone), len(alone))})\nhint: measure both against the same --gt"
        )


def _both(field: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """Two short values of a field, in brackets; definitions and hashes are left out."""
    values = a.get(field), b.get(field)
    is_short = "." not in field and not any(isinstance(value, Mapping) for value in values)
    return f" ({values[0]}, {values[1]})" if is_short else ""


def _metrics(path: Path, evaluation: _Evaluation) -> tuple[Metric, ...]:
    """The metrics that an evaluation has values of."""
    names = next(iter(evaluation.per_image.values.values()), {})
    if not names or not set(names) <= set(IMAGE_METRICS):
        unknown = message_of(", ".join(sorted(set(names) - set(IMAGE_METRICS)))) or "none"
        raise DataError(f"{path}: values of unknown metrics: {unknown}\nhint: {_HINT}")
    return build_metrics(EvalConfig(gt="-", pred=("-",), metrics=tuple(names)))


def _values(
    path: Path, metric: Metric, prediction: str, by_metric: Mapping[str, list[float | None]], count: int
) -> NDArray[np.float64]:
    """One metric's values (N,) of a prediction; null is the infinite value of identical images."""
    column = by_metric.get(metric.name, [])
    if len(column) != count or (None in column and metric.pool is None):
        raise DataError(f"{path} is damaged: {metric.name} of {message_of(prediction)} lacks values\nhint: {_HINT}")
    return np.array([np.inf if value is None else value for value in column], dtype=np.float64)


def _label(name: str, path: Path, common: set[str]) -> str:
    return f"{name} ({path})" if name in common else name
