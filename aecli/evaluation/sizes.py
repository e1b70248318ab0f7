"""The check of image sizes, from headers alone, before anything is decoded."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from aecli.data.decoding.decode import DecodeError, image_size
from aecli.evaluation.pairing import Pair, Pairing, Size
from aecli.evaluation.unpaired import Unpaired
from aecli.metrics.base import Metric
from aecli.progress import Listener
from aecli.runtime.distributed import Distributed
from aecli.runtime.work_queue import map_shared

_BATCH = 64  # pairs whose headers a worker reads at a time

_Sizes = tuple[Size, tuple[bool, ...]]  # of a ground truth, and whether each of its predictions will be resized


def check_sizes(
    pairing: Pairing,
    names: Sequence[str],
    metric: Metric,
    resize: bool,
    workers: int | None,
    distributed: Distributed,
    listen: Listener,
) -> Pairing:
    """Read the headers of all pairs and move those that can't be measured to `unpaired`, the same in every process.

    `names` are those of the predictions, in the order of each pair's; `metric` is the one that needs the longest sides.
    With `resize`, predictions of another size than their ground truth will be resized, and can be measured.
    """
    known: dict[_Sizes, _Sizes] = {}  # equal sizes are one object: there are as many as images

    def check(batch: range) -> list[_Sizes | list[Unpaired]]:
        checked = [_check_pair(pairing.pairs[index], names, metric, resize) for index in batch]
        return [each if isinstance(each, list) else known.setdefault(each, each) for each in checked]

    indices = range(len(pairing.pairs))
    batches = [indices[start : start + _BATCH] for start in indices[::_BATCH]]
    checked = chain.from_iterable(map_shared(check, batches, "checking sizes", workers, distributed, listen))
    pairs, unpaired = [], list(pairing.unpaired)
    for pair, found in zip(pairing.pairs, checked, strict=True):
        if isinstance(found, list):
            unpaired += found
        else:
            pairs.append(replace(pair, size=found[0], resized=found[1]))
    return Pairing(pairs, unpaired)


def _check_pair(pair: Pair, names: Sequence[str], metric: Metric, resize: bool) -> _Sizes | list[Unpaired]:
    """Return the ground truth's size and which predictions will be resized, or what is wrong."""
    sizes: list[Size] = []
    problems: list[Unpaired] = []
    for name, image in zip((None, *names), pair.images, strict=True):
        try:
            sizes.append(image_size(image))
        except DecodeError as error:
            problems.append(Unpaired(image.name, name, "unreadable", error.reason))
    if problems:
        return problems
    truth, *others = sizes
    if min(truth) < metric.min_side:
        reason = f"{_format(truth)}, and {metric.name} needs {metric.min_side} pixels a side"
        problems.append(Unpaired(pair.truth.name, None, "small", reason))
    resized = tuple(other != truth for other in others)
    if not resize:
        problems += [
            Unpaired(image.name, name, "size", f"{_format(other)}, its ground truth {_format(truth)}")
            for name, image, other in zip(names, pair.predictions, others, strict=True)
            if other != truth
        ]
    return problems or (truth, resized)


def _format(size: Size) -> str:
    return f"{size[1]}x{size[0]}"
