"""The check of image sizes, from headers alone, before anything is decoded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from aecli.configs import EvalConfig
from aecli.data.decoding.decode import DecodeError, image_size
from aecli.evaluation.pairing import Pair, Pairing, Size
from aecli.evaluation.unpaired import Unpaired
from aecli.metrics.base import Described
from aecli.progress import Listener
from aecli.runtime.distributed import Distributed
from aecli.runtime.work_queue import map_shared

_BATCH = 64  # pairs whose headers a worker reads at a time


@dataclass(frozen=True, slots=True)
class _Sizes:
    """The size at which a pair is measured, which of its images are resized to it, and whether it is cut to it."""

    size: Size
    resized: tuple[bool, ...]
    cropped: bool


def check_sizes(
    pairing: Pairing,
    names: Sequence[str],
    metric: Described,
    config: EvalConfig,
    distributed: Distributed,
    listen: Listener,
) -> Pairing:
    """Read the headers of all pairs and move those that can't be measured to `unpaired`, the same in every process.

    `names` are those of the predictions that are read, in the order of each pair's; `metric` is the one that needs the
    longest sides.
    """
    known: dict[_Sizes, _Sizes] = {}  # equal sizes are one object: there are as many as images

    def check(batch: range) -> list[_Sizes | list[Unpaired]]:
        checked = [_check_pair(pairing.pairs[index], names, metric, config) for index in batch]
        return [each if isinstance(each, list) else known.setdefault(each, each) for each in checked]

    indices = range(len(pairing.pairs))
    batches = [indices[start : start + _BATCH] for start in indices[::_BATCH]]
    checked = chain.from_iterable(map_shared(check, batches, "checking sizes", config.workers, distributed, listen))
    pairs, unpaired = [], list(pairing.unpaired)
    for pair, found in zip(pairing.pairs, checked, strict=True):
        if isinstance(found, list):
            unpaired += found
        else:
            pairs.append(replace(pair, size=found.size, resized=found.resized, cropped=found.cropped))
    return replace(pairing, pairs=pairs, unpaired=unpaired)


def _check_pair(pair: Pair, names: Sequence[str], metric: Described, config: EvalConfig) -> _Sizes | list[Unpaired]:
    """Return how the images of a pair come to one size, or what is wrong."""
    sizes: list[Size] = []
    problems: list[Unpaired] = []
    for name, image in zip((None, *names), pair.images, strict=True):
        try:
            sizes.append(image_size(image))
        except DecodeError as error:
            problems.append(Unpaired(image.name, name, "unreadable", error.reason))
    if problems:
        return problems
    original, *others = sizes
    truth = original if config.image_size is None else (config.image_size, config.image_size)
    how = config.on_mismatch
    common = (min(size[0] for size in (truth, *others)), min(size[1] for size in (truth, *others)))
    size = common if how == "crop" else truth
    if min(size) < metric.min_side:
        reason = f"{_format(size)}, and {metric.name} needs {metric.min_side} pixels a side"
        problems.append(Unpaired(pair.truth.name, None, "small", reason, size))
    if how not in ("resize", "crop"):
        problems += [
            Unpaired(image.name, name, "size", f"{_format(other)}, its ground truth {_format(truth)}", other, original)
            for name, image, other in zip(names, pair.predictions, others, strict=True)
            if other != truth
        ]
    resized = (original != truth, *(how == "resize" and other != truth for other in others))
    return problems or _Sizes(size, resized, how == "crop" and any(each != size for each in (truth, *others)))


def _format(size: Size) -> str:
    return f"{size[1]}x{size[0]}"
