"""`aecli eval`: pair, check, then measure everything in one streamed pass."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import PIL
import torch
from numpy.typing import NDArray

from aecli.configs import EvalConfig
from aecli.data.decoding.decode import DecodeError, Pixels, decode, resize
from aecli.data.image_ref import file_paths, require_same_images
from aecli.errors import DataError
from aecli.evaluation.html_report.page import Page, page_under_way
from aecli.evaluation.pairing import (
    Pair,
    Pairing,
    Prediction,
    Unpaired,
    check_sizes,
    describe,
    gather_unpaired,
    mismatch_error,
    pair_sources,
    parse_predictions,
    source_name,
)
from aecli.evaluation.report import EvalReport, Numbers, per_image_csv, sum_up
from aecli.metrics.registry import BUILDERS, Loaded, Metric
from aecli.metrics.statistics import CONFIDENCE, RESAMPLES
from aecli.progress import Listener, Notice, ignore
from aecli.runtime.device import oom_as_device_error, resolve_device
from aecli.runtime.device import versions as runtime_versions
from aecli.runtime.distributed import Distributed
from aecli.runtime.threads import device_lock
from aecli.runtime.work_queue import map_shared
from aecli.storage.atomic_files import check_writable_file
from aecli.storage.outputs import forbid_overwriting_inputs, write_output

__all__ = ["EvalReport", "evaluate"]

# Pixels measured at once, however large images are. On a CPU each core has its own batch, and no more in it than keeps
# the matrix products busy: what is larger only leaves the cache.
_CPU_BATCH_PIXELS = 2**19
_DEVICE_BATCH_PIXELS = 2**21


def evaluate(config: EvalConfig, listen: Listener = ignore) -> EvalReport:
    """Compare predictions with their ground truth, image by image.

    What can fail cheaply fails first: the place of the CSV, names, weights, sizes in headers; then images are decoded.
    All predictions are measured on the same images.

    In processes that torchrun started, all of them must call this: they share the images, and get the same report; the
    first one's `listen` hears of it, and it writes the CSV.

    Raises:
        ConfigError: the predictions can't be told apart, or the device is not here.
        DataError: images don't pair (see `--on-mismatch`), or none is left to measure.
        OutputError: the CSV can't be written.
        WeightsError: LPIPS' weights can't be had.
        PeerError: another of several processes failed.
    """
    with Distributed() as distributed:
        predictions = parse_predictions(config.pred)
        sources = [config.gt, *(prediction.source for prediction in predictions)]
        with page_under_way(config.report, sources, distributed) as page:
            return _evaluate(
                config, predictions, sources, page, distributed, listen if distributed.is_main_process else ignore
            )


def _evaluate(
    config: EvalConfig,
    predictions: Sequence[Prediction],
    sources: Sequence[str],
    page: Page | None,
    distributed: Distributed,
    listen: Listener,
) -> EvalReport:
    names = [prediction.name for prediction in predictions]
    metrics = tuple(BUILDERS[name](config) for name in dict.fromkeys(config.metrics))
    device = resolve_device(config.device)
    if config.per_image is not None and distributed.is_main_process:
        check_writable_file(config.per_image, "--per-image")
    pairing = pair_sources(config.gt, predictions)
    if distributed.is_main_process:
        _require_not_measured(config, pairing, sources)
    distributed.barrier()
    require_same_images([image for pair in pairing.pairs for image in pair.images], "--gt and --pred", distributed)
    if config.on_mismatch != "skip" and pairing.unpaired:
        raise mismatch_error(pairing.unpaired)
    loaded = distributed.main_process_first(lambda: {metric.name: metric.load(device, listen) for metric in metrics})
    pairing = _compare_sizes(config, pairing, names, metrics, distributed, listen)
    measured = _measure(config, pairing.pairs, names, loaded, device, page, distributed, listen)
    unpaired = tuple(pairing.unpaired + measured.unreadable)
    if not measured.pairs:
        raise _nothing_left(unpaired)
    if unpaired:
        listen(Notice(f"left out, as --on-mismatch skip asks: {describe(unpaired)}"))
    if config.per_image is not None and distributed.is_main_process:
        content = per_image_csv([pair.name for pair in measured.pairs.values()], names, measured.numbers)
        write_output(config.per_image, content, listen)
    results, comparisons = sum_up(metrics, names, measured.numbers)
    report = EvalReport(
        n=len(measured.pairs),
        metrics=metrics,
        results=results,
        comparisons=comparisons,
        definitions=_definitions(metrics, names, measured.pairs.values()),
        unpaired=unpaired,
        versions=_versions(loaded),
    )
    if page is not None and distributed.is_main_process:
        page.write(source_name(config.gt), report, measured.pairs, measured.numbers, listen)
    distributed.barrier()
    return report


def _require_not_measured(config: EvalConfig, pairing: Pairing, sources: Sequence[str]) -> None:
    for flag, output in (("--per-image", config.per_image), ("--report", config.report)):
        if output is not None:
            images = (image for pair in pairing.pairs for image in pair.images)
            forbid_overwriting_inputs(
                flag, [output], chain((source for source in sources if Path(source).is_file()), file_paths(images))
            )


def _compare_sizes(
    config: EvalConfig,
    pairing: Pairing,
    names: list[str],
    metrics: Sequence[Metric],
    distributed: Distributed,
    listen: Listener,
) -> Pairing:
    """Take out pairs whose sizes can't be measured, which is an error unless they may be skipped."""
    smallest = max(metrics, key=lambda metric: metric.min_side)
    pairing = check_sizes(
        pairing,
        names,
        (smallest.name, smallest.min_side),
        config.on_mismatch == "resize",
        config.workers,
        distributed,
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
    """The pairs measured by their index, their numbers in that order, and the images that turned out unreadable."""

    pairs: dict[int, Pair]
    numbers: Numbers
    unreadable: list[Unpaired]


def _measure(
    config: EvalConfig,
    pairs: list[Pair],
    names: Sequence[str],
    loaded: Mapping[str, Loaded],
    device: torch.device,
    page: Page | None,
    distributed: Distributed,
    listen: Listener,
) -> _Measured:
    """The one pass: each worker decodes a batch of images of one size and measures it, with no wait for the others.

    What is in a batch depends on the images alone, and so do the numbers. A row an image is gathered from all
    processes: its index, and each metric's numbers.
    """
    width = len(names)
    turn = device_lock(device)

    def measure(indices: NDArray[np.intp]) -> tuple[NDArray[np.float64], list[Unpaired]]:
        decoded = {index: _decode(pairs[index], names) for index in indices}
        missing = [images for images in decoded.values() if isinstance(images, Unpaired)]
        if missing and config.on_mismatch != "skip":
            raise mismatch_error(missing)
        whole = {index: images for index, images in decoded.items() if not isinstance(images, Unpaired)}
        numbers = _measure_batch(list(whole.values()), loaded, device, turn) if whole else {}
        if page is not None:
            for index, images in whole.items():
                page.add(int(index), images)
        return np.column_stack([list(whole), *numbers.values()]) if whole else nothing, missing

    nothing = np.empty((0, 1 + width * len(loaded)))
    most_pixels = _CPU_BATCH_PIXELS if device.type == "cpu" else _DEVICE_BATCH_PIXELS
    batches = list(_batches(pairs, config.batch_size, most_pixels))
    dealt = map_shared(measure, batches, "measuring", config.workers, distributed, listen)
    rows = np.concatenate(distributed.all_gather(np.concatenate([nothing, *(rows for _, (rows, _) in dealt)])))
    rows = rows[np.argsort(rows[:, 0])]
    return _Measured(
        {int(index): pairs[int(index)] for index in rows[:, 0]},
        {
            name: np.ascontiguousarray(rows[:, start : start + width])
            for start, name in zip(range(1, rows.shape[1], width), loaded, strict=True)
        },
        gather_unpaired(((number, missing) for number, (_, missing) in dealt), distributed),
    )


def _batches(pairs: Sequence[Pair], batch_size: int, most_pixels: int) -> Iterator[NDArray[np.intp]]:
    """The indices of pairs of one size, by the batch, each as early as its last pair."""
    waiting: dict[tuple[int, int], list[int]] = {}
    for index, pair in enumerate(pairs):
        members = waiting.setdefault(pair.size, [])
        members.append(index)
        if len(members) >= min(batch_size, max(1, most_pixels // (pair.size[0] * pair.size[1]))):
            yield np.array(waiting.pop(pair.size), dtype=np.intp)
    for members in waiting.values():
        yield np.array(members, dtype=np.intp)


def _decode(pair: Pair, names: Sequence[str]) -> list[Pixels] | Unpaired:
    """The ground truth's pixels and each prediction's, all of one size; or what stands in the way."""
    images = []
    resized = (False, *pair.resized)
    for name, image, resizes in zip((None, *names), pair.images, resized, strict=True):
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


def _measure_batch(
    images: list[list[Pixels]],
    loaded: Mapping[str, Loaded],
    device: torch.device,
    turn: AbstractContextManager[object],
) -> dict[str, NDArray[np.float64]]:
    """Each metric's numbers, (N, predictions), of N ground truths (H, W, 3) with their predictions."""
    height, width = images[0][0].shape[:2]
    mend = (
        f"a smaller --batch-size, --lpips-net alex or --metrics psnr,ssim "
        f"({len(images)} images of {width}x{height} at once)"
    )
    stacks = [np.stack(each) for each in zip(*images, strict=True)]
    with turn, oom_as_device_error(mend):
        truths, *predictions = [torch.from_numpy(stack).to(device).permute(0, 3, 1, 2) for stack in stacks]
        numbers = {}
        for name, each in loaded.items():
            against = each.measure(truths)
            numbers[name] = np.stack([against(prediction).numpy() for prediction in predictions], axis=1)
        return numbers


def _definitions(metrics: Sequence[Metric], names: Sequence[str], pairs: Collection[Pair]) -> dict[str, str]:
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
