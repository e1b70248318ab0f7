"""`aecli eval`: pair, check, then measure everything in one streamed pass."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np
import PIL
import torch
from numpy.typing import NDArray

from aecli.configs import EvalConfig
from aecli.data.decode import DecodeError, Pixels, decode, ordered_map, resize
from aecli.errors import DataError
from aecli.files import claim_file
from aecli.metrics import BUILDERS, Loaded, Metric
from aecli.metrics.statistics import CONFIDENCE, RESAMPLES, compare
from aecli.pairing import (
    Pair,
    Pairing,
    Unpaired,
    check_sizes,
    describe,
    mismatch_error,
    pair_sources,
    parse_predictions,
)
from aecli.progress import Listener, Notice, Progress, ignore
from aecli.runtime.device import resolve_device, telling_out_of_memory
from aecli.runtime.device import versions as runtime_versions
from aecli.scores import EvalReport, Numbers, Result, Versus, summarise, write_per_image

__all__ = ["EvalReport", "evaluate"]

# However large images are or however many sizes they have: pixels in a batch, and decoded pixels waiting for one.
_BATCH_PIXELS = 2**21
_WAITING_PIXELS = 2**23


def evaluate(config: EvalConfig, listen: Listener = ignore) -> EvalReport:
    """Compare predictions with their ground truth, image by image.

    What can fail cheaply fails first: the place of the CSV, names, weights, sizes in headers; then images are decoded.
    All predictions are measured on the same images.

    Raises:
        ConfigError: the predictions can't be told apart, or the device is not here.
        DataError: images don't pair (see `--on-mismatch`), or none is left to measure.
        OutputError: the CSV can't be written.
        WeightsError: LPIPS' weights can't be had.
    """
    predictions = parse_predictions(config.pred)
    names = [prediction.name for prediction in predictions]
    metrics = tuple(BUILDERS[name](config) for name in dict.fromkeys(config.metrics))
    device = resolve_device(config.device)
    if config.per_image is not None:
        claim_file(config.per_image, "--per-image")
    pairing = pair_sources(config.gt, predictions)
    if config.on_mismatch != "skip" and pairing.unpaired:
        raise mismatch_error(pairing.unpaired)
    loaded = {metric.name: metric.load(device, listen) for metric in metrics}
    pairing = _compare_sizes(config, pairing, names, metrics, listen)
    measured = _measure(config, pairing.pairs, names, loaded, device, listen)
    unpaired = tuple(pairing.unpaired + measured.unreadable)
    if not measured.pairs:
        raise _nothing_left(unpaired)
    if unpaired:
        listen(Notice(f"left out, as --on-mismatch skip asks: {describe(unpaired)}"))
    if config.per_image is not None:
        if config.per_image.exists():
            listen(Notice(f"replacing {config.per_image}"))
        write_per_image(config.per_image, [pair.name for pair in measured.pairs], names, measured.numbers)
    return EvalReport(
        n=len(measured.pairs),
        metrics=metrics,
        results=tuple(
            Result(name, {m.name: summarise(m, measured.numbers[m.name][:, column]) for m in metrics})
            for column, name in enumerate(names)
        ),
        comparisons=_compare_all(names, metrics, measured.numbers),
        definitions=_definitions(metrics, names, measured.pairs),
        unpaired=unpaired,
        versions=_versions(loaded),
    )


def _compare_sizes(
    config: EvalConfig, pairing: Pairing, names: list[str], metrics: Sequence[Metric], listen: Listener
) -> Pairing:
    """Take out pairs whose sizes can't be measured, which is an error unless they may be skipped."""
    smallest = max(metrics, key=lambda metric: metric.min_side)
    pairing = check_sizes(
        pairing,
        names,
        (smallest.name, smallest.min_side),
        config.on_mismatch == "resize",
        config.workers,
        listen,
    )
    if config.on_mismatch != "skip" and pairing.unpaired:
        raise mismatch_error(pairing.unpaired)
    if not pairing.pairs:
        raise _nothing_left(pairing.unpaired)
    return pairing


def _nothing_left(unpaired: Sequence[Unpaired]) -> DataError:
    return DataError(f"no image is left to measure. {describe(unpaired)}")


@dataclass(frozen=True)
class _Measured:
    """The pairs measured, their numbers in that order, and the images that turned out unreadable."""

    pairs: list[Pair]
    numbers: Numbers
    unreadable: list[Unpaired]


def _measure(
    config: EvalConfig,
    pairs: list[Pair],
    names: Sequence[str],
    loaded: Mapping[str, Loaded],
    device: torch.device,
    listen: Listener,
) -> _Measured:
    """The one pass: decode in threads, gather images of one size, measure them together."""
    numbers = {name: np.empty((len(pairs), len(names))) for name in loaded}
    is_measured = np.zeros(len(pairs), dtype=bool)
    unreadable: list[Unpaired] = []

    def readable() -> Iterator[tuple[int, list[Pixels]]]:
        for index, images in enumerate(ordered_map(partial(_decode, names=names), pairs, config.workers)):
            if isinstance(images, list):
                yield index, images
            elif config.on_mismatch == "skip":
                unreadable.append(images)
            else:
                raise mismatch_error([images])

    for indices, stacks in _batches(readable(), config.batch_size):
        found = _measure_batch(stacks, loaded, device)
        for name, values in found.items():
            numbers[name][indices] = values
        is_measured[indices] = True
        listen(Progress("measuring", int(is_measured.sum()) + len(unreadable), len(pairs)))
    return _Measured(
        [pair for pair, measured in zip(pairs, is_measured, strict=True) if measured],
        {name: values[is_measured] for name, values in numbers.items()},
        unreadable,
    )


def _decode(pair: Pair, names: Sequence[str]) -> list[Pixels] | Unpaired:
    """The ground truth's pixels and each prediction's, all of one size; or what stands in the way."""
    images = []
    resized = (False, *pair.resized)
    for name, image, resizes in zip((None, *names), (pair.truth, *pair.predictions), resized, strict=True):
        try:
            pixels = decode(image)
        except DecodeError as error:
            return Unpaired(image.name, name, "unreadable", error.reason)
        if resizes:
            pixels = resize(pixels, *pair.size, method="bicubic")
        if pixels.shape[:2] != pair.size:
            return Unpaired(image.name, name, "unreadable", "its pixels are not of the size that its header states")
        images.append(pixels)
    return images


def _batches(
    decoded: Iterable[tuple[int, list[Pixels]]], batch_size: int
) -> Iterator[tuple[list[int], list[NDArray[np.uint8]]]]:
    """Gather images of one size: yields their indices and, for ground truth and predictions, uint8 (N, H, W, 3).

    A size's images go on when they fill a batch; the fullest size's when too many pixels wait; the rest at the end.
    """
    waiting: dict[tuple[int, ...], list[tuple[int, list[Pixels]]]] = {}

    def pixels(shape: tuple[int, ...]) -> int:
        return shape[0] * shape[1] * len(waiting[shape])

    def take(shape: tuple[int, ...]) -> tuple[list[int], list[NDArray[np.uint8]]]:
        members = waiting.pop(shape)
        return [index for index, _ in members], [np.stack(each) for each in zip(*(m[1] for m in members), strict=True)]

    for index, images in decoded:
        shape = images[0].shape
        waiting.setdefault(shape, []).append((index, images))
        room = _BATCH_PIXELS // (shape[0] * shape[1])
        if len(waiting[shape]) >= min(batch_size, max(1, room)):
            yield take(shape)
        elif sum(map(pixels, waiting)) > _WAITING_PIXELS:
            yield take(max(waiting, key=pixels))
    for shape in list(waiting):
        yield take(shape)


def _measure_batch(
    stacks: list[NDArray[np.uint8]], loaded: Mapping[str, Loaded], device: torch.device
) -> dict[str, NDArray[np.float64]]:
    """Each metric's numbers, (N, predictions), of a ground truth's (N, H, W, 3) and each prediction's."""
    count, height, width, _ = stacks[0].shape
    mend = (
        f"a smaller --batch-size, --lpips-net alex or --metrics psnr,ssim ({count} images of {width}x{height} at once)"
    )
    with telling_out_of_memory(mend):
        truths, *predictions = [torch.from_numpy(stack).to(device).permute(0, 3, 1, 2) for stack in stacks]
        numbers = {}
        for name, each in loaded.items():
            against = each.measure(truths)
            numbers[name] = np.stack([against(prediction).numpy() for prediction in predictions], axis=1)
        return numbers


def _compare_all(names: Sequence[str], metrics: Sequence[Metric], numbers: Numbers) -> tuple[Versus, ...]:
    """Every two predictions, paired by image."""
    return tuple(
        Versus(
            names[a],
            names[b],
            {m.name: compare(numbers[m.name][:, a], numbers[m.name][:, b], m.higher_is_better) for m in metrics},
        )
        for a, b in combinations(range(len(names)), 2)
    )


def _definitions(metrics: Sequence[Metric], names: Sequence[str], pairs: list[Pair]) -> dict[str, str]:
    """One exact sentence for everything that the numbers depend on."""
    definitions = {metric.name: metric.definition for metric in metrics}
    definitions["ci95"] = (
        f"{CONFIDENCE:.0%} percentile bootstrap interval of the mean over images, {RESAMPLES:,} resamples, fixed seed."
    )
    if len(names) > 1:
        definitions["comparisons"] = (
            "For predictions a and b on the same images: the mean of a - b with its interval by the same bootstrap, "
            "and on how many images each is the better one."
        )
    resized = {name: sum(pair.resized[column] for pair in pairs) for column, name in enumerate(names)}
    if any(resized.values()):
        shares = ", ".join(f"{count} of {len(pairs)} of {name}" for name, count in resized.items() if count)
        definitions["resize"] = f"Resized to the ground truth's size before measuring (bicubic, antialiased): {shares}."
    return definitions


def _versions(loaded: Mapping[str, Loaded]) -> dict[str, str]:
    versions = runtime_versions() | {"numpy": np.__version__, "pillow": PIL.__version__}
    for each in loaded.values():
        versions |= each.versions
    return versions
