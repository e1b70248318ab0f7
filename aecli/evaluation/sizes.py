"""The check of image sizes, from headers alone, before anything is decoded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from aecli.data.decoding.decode import DecodeError, image_size
from aecli.evaluation.pairing import Pair, Pairing, Size
from aecli.evaluation.unpaired import Unpaired, gather_unpaired
from aecli.progress import Listener
from aecli.runtime.distributed import Distributed
from aecli.runtime.work_queue import map_shared

_BATCH = 64  # pairs whose headers a worker reads at a time


@dataclass(frozen=True)
class SizeRules:
    """Which sizes can be measured.

    `metric` is the most demanding one, which needs sides of `min_side` pixels; with `resize`, predictions of another
    size than their ground truth will be resized and are no mismatch.
    """

    metric: str
    min_side: int
    resize: bool


def check_sizes(
    pairing: Pairing,
    names: Sequence[str],
    rules: SizeRules,
    workers: int | None,
    distributed: Distributed,
    listen: Listener,
) -> Pairing:
    """Read the headers of all pairs and move those that can't be measured to `unpaired`, the same in every process.

    Args:
        pairing: from `pair_sources`.
        names: of the predictions, in the order of each pair's.
        rules: which sizes can be measured.
        workers: threads that read; None for as many as fit this machine.
        distributed: the processes that share the reading.
        listen: is told about progress.
    """

    def check(batch: range) -> tuple[NDArray[np.int64], dict[int, list[Unpaired]]]:
        checked = {index: _check_pair(pairing.pairs[index], names, rules) for index in batch}
        rows = [(index, *sizes) for index, sizes in checked.items() if isinstance(sizes, tuple)]
        problems = {index: each for index, each in checked.items() if isinstance(each, list)}
        return np.array(rows, dtype=np.int64).reshape(-1, 3 + len(names)), problems

    indices = range(len(pairing.pairs))
    batches = [indices[start : start + _BATCH] for start in indices[::_BATCH]]
    results = [result for _, result in map_shared(check, batches, "checking sizes", workers, distributed, listen)]
    mine = np.concatenate([np.empty((0, 3 + len(names)), dtype=np.int64), *(rows for rows, _ in results)])
    rows = np.concatenate(distributed.all_gather(mine))
    unpaired = gather_unpaired((each for _, problems in results for each in problems.items()), distributed)
    return Pairing(list(_with_sizes(pairing.pairs, rows)), pairing.unpaired + unpaired)


def _with_sizes(pairs: Sequence[Pair], rows: NDArray[np.int64]) -> Iterator[Pair]:
    """The pairs that have a row (index, H, W, a flag per prediction: resized or not), in their order."""
    sizes: dict[Size, Size] = {}  # equal sizes and flags are shared by all pairs, to save memory
    flags: dict[tuple[bool, ...], tuple[bool, ...]] = {}
    for row in rows[np.argsort(rows[:, 0])]:
        index, height, width, *resized = row.tolist()  # one row at a time: there are as many as images
        size, flag = (height, width), tuple(map(bool, resized))
        yield replace(pairs[index], size=sizes.setdefault(size, size), resized=flags.setdefault(flag, flag))


def _check_pair(pair: Pair, names: Sequence[str], rules: SizeRules) -> tuple[int, ...] | list[Unpaired]:
    """The ground truth's height and width and, per prediction, whether it will be resized; or what is wrong."""
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
    if min(truth) < rules.min_side:
        reason = f"{_format(truth)}, and {rules.metric} needs {rules.min_side} pixels a side"
        problems.append(Unpaired(pair.truth.name, None, "small", reason))
    resized = tuple(other != truth for other in others)
    if not rules.resize:
        problems += [
            Unpaired(image.name, name, "size", f"{_format(other)}, its ground truth {_format(truth)}")
            for name, image, other in zip(names, pair.predictions, others, strict=True)
            if other != truth
        ]
    return problems or (*truth, *resized)


def _format(size: Size) -> str:
    return f"{size[1]}x{size[0]}"
