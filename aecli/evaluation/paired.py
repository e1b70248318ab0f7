"""`aecli eval`: pair, check, then measure everything in one pass."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import PIL

from aecli.configs import EvalConfig
from aecli.data.image_ref import file_paths, require_same_images
from aecli.errors import DataError
from aecli.evaluation.decoding import PairDecoder
from aecli.evaluation.definitions import definitions
from aecli.evaluation.hints import ways_out
from aecli.evaluation.html_report.page import Page, open_page
from aecli.evaluation.made import Load, MadePredictions
from aecli.evaluation.measuring import Measured, PairMeasurer, measure_pairs
from aecli.evaluation.pairing import Pairing, Prediction, pair_sources, parse_predictions, source_name
from aecli.evaluation.per_image import per_image_file
from aecli.evaluation.protocol import protocol_of
from aecli.evaluation.report import EvalReport, measure_sets, summarize_metrics
from aecli.evaluation.sizes import check_sizes
from aecli.evaluation.small_sets import frechet_notices
from aecli.evaluation.unpaired import describe, mismatch_error, nothing_left_error
from aecli.metrics.base import Described, Metric
from aecli.metrics.registry import build_metrics
from aecli.metrics.set_metrics import MIN_IMAGES, SetMetric, build_set_metrics, load_networks
from aecli.progress import Listener, Notice, ignore
from aecli.runtime.accelerators import may_have_accelerator
from aecli.runtime.distributed import Distributed
from aecli.runtime.memory import keep_freed_memory
from aecli.runtime.threads import device_lock
from aecli.runtime.versions import versions
from aecli.storage.outputs import check_writable_file, forbid_overwriting_inputs, write_output

__all__ = ["EvalReport", "evaluate"]


def evaluate(config: EvalConfig, listen: Listener = ignore, load: Load | None = None) -> EvalReport:
    """Compare predictions with their ground truth, image by image.

    `load` loads what makes those of the models that the config names (`aecli.inference.model_predictions`); they come
    after those that are read.

    What can fail cheaply fails first: the path of the CSV, names, weights, sizes in headers; then images are decoded.
    All predictions are measured on the same images.

    In processes started by torchrun, all of them must call this: they share the images, and get the same report; only
    the main process calls `listen` and writes the CSV.

    Raises:
        ConfigError: predictions have the same name, or the device is not available.
        DataError: images don't pair (see `--on-mismatch`), or none is left to measure.
        OutputError: the CSV or the page can't be written.
        WeightsError: weights of LPIPS or of a metric of sets are missing or damaged.
        PeerError: another process failed.
    """
    with Distributed() as distributed:
        listen = listen if distributed.is_main_process else ignore
        predictions = parse_predictions(config.pred)
        with open_page(config.report, _sources(config, predictions), distributed) as page:
            made = None
            if load is not None:
                config, made = load(config, distributed, listen)
            return _evaluate(config, predictions, made, page, distributed, listen)


def _evaluate(
    config: EvalConfig,
    predictions: Sequence[Prediction],
    made: MadePredictions | None,
    page: Page | None,
    distributed: Distributed,
    listen: Listener,
) -> EvalReport:
    read = [prediction.name for prediction in predictions]
    names = [*read, *(made.names if made is not None else ())]
    metrics, set_metrics = build_metrics(config), build_set_metrics(config)
    device = _device(config, metrics, has_networks=bool(set_metrics) or made is not None)
    if config.per_image is not None and distributed.is_main_process:
        check_writable_file(config.per_image, "--per-image")
    pairing = pair_sources(config.gt, predictions, config.pred_name, listen)
    if distributed.is_main_process:
        _forbid_overwriting(config, pairing, _sources(config, predictions))
    distributed.barrier()
    require_same_images([image for pair in pairing.pairs for image in pair.images], "--gt and --pred", distributed)
    every: tuple[Described, ...] = (*metrics, *set_metrics)
    _require_paired(config, pairing, every)
    loaded = distributed.main_process_first(lambda: {metric.name: metric.load(device, listen) for metric in metrics})
    networks = distributed.main_process_first(lambda: load_networks(set_metrics, config, device, listen))
    pairing = check_sizes(pairing, read, max(every, key=lambda each: each.min_side), config, distributed, listen)
    _require_paired(config, pairing, every)
    if not pairing.pairs:
        raise nothing_left_error(pairing.unpaired, ways_out(pairing, every, config))
    _require_sets(set_metrics, len(pairing.pairs))
    if made is not None:
        made.begin(pairing.truths)
    measurer = PairMeasurer(pairing.pairs, names, PairDecoder.of(config, made), loaded, networks, device,
                            device_lock(device.partition(":")[0]), config.on_mismatch == "skip", page)  # fmt: skip
    measured = measure_pairs(measurer, config, distributed, listen)
    unpaired = tuple(pairing.unpaired + measured.unreadable)
    if not measured.pairs:
        raise nothing_left_error(unpaired)
    _require_sets(set_metrics, len(measured.pairs))
    measured.counts.require_content(names, len(measured.pairs))
    if unpaired:
        listen(Notice(f"left out because of --on-mismatch skip: {describe(unpaired)}"))
    sources = _sources(config, predictions)
    notices = tuple(measured.counts.notices(sources, names, config.truth_background, config.data_range))
    for metric in set_metrics:
        network = networks[metric.features]
        if metric.name == network.frechet_name:
            notices += tuple(frechet_notices({"pairs": len(measured.pairs)}, network))
    for text in notices:
        listen(Notice(text))
    results, comparisons = summarize_metrics(metrics, names, measured.values)
    results = tuple(
        replace(result, distances=measure_sets(set_metrics, column, measured.features))
        for column, result in enumerate(results)
    )
    of_sets = {
        each.name: each.definition(networks[each.features], len(measured.pairs), config.crop_border)
        for each in set_metrics
    }
    weights = {name: sha256 for metric in loaded.values() for name, sha256 in metric.versions.items()}
    weights |= {f"{name}_features_sha256": network.weights_sha256 for name, network in networks.items()}
    report = EvalReport(
        n=len(measured.pairs),
        metrics=metrics,
        results=results,
        comparisons=comparisons,
        definitions=definitions(metrics, of_sets, names, measured, config),
        unpaired=unpaired,
        versions=_base_versions() | weights,
        models=dict(zip(made.names, made.figures(distributed), strict=True)) if made is not None else {},
        protocol=protocol_of(metrics, of_sets, weights, measured.pairs.values(), measured.counts.deep > 0, config),
        images=tuple(pair.name for pair in measured.pairs.values()),
        values=measured.values,
        conversions=measured.counts.to_json(sources),
        notices=notices,
        set_metrics=set_metrics,
    )
    if distributed.is_main_process:
        _write_outputs(config, page, report, measured, listen)
    distributed.barrier()
    return report


def _device(config: EvalConfig, metrics: Sequence[Metric], has_networks: bool) -> str:
    """Where metrics are computed: on the CPU without PyTorch where all can be, and no accelerator may be wanted."""
    on_arrays = not has_networks and all(metric.takes_arrays for metric in metrics)
    wants_accelerator = any(metric.has_network for metric in metrics) and may_have_accelerator()
    if on_arrays and (config.device == "cpu" or (config.device == "auto" and not wants_accelerator)):
        keep_freed_memory()
        return "cpu"
    from aecli.runtime.device import resolve_device  # imports PyTorch

    return str(resolve_device(config.device))


def _sources(config: EvalConfig, predictions: Sequence[Prediction]) -> list[str]:
    return [config.gt, *(prediction.source for prediction in predictions)]


def _forbid_overwriting(config: EvalConfig, pairing: Pairing, sources: Sequence[str]) -> None:
    """Raise OutputError if an output file is one of the input files."""
    for flag, output in (("--per-image", config.per_image), ("--report", config.report)):
        if output is not None:
            images = (image for pair in pairing.pairs for image in pair.images)
            archives = (source for source in sources if Path(source).is_file())
            forbid_overwriting_inputs(flag, [output], chain(archives, file_paths(images)))


def _require_sets(metrics: Sequence[SetMetric], pairs: int) -> None:
    if metrics and pairs < MIN_IMAGES:
        raise DataError(f"--metrics {metrics[0].name}: compares sets of at least {MIN_IMAGES} images, not of {pairs}")


def _require_paired(config: EvalConfig, pairing: Pairing, metrics: Sequence[Described]) -> None:
    if config.on_mismatch != "skip" and pairing.unpaired:
        raise mismatch_error(pairing.unpaired, ways_out(pairing, metrics, config))


def _write_outputs(
    config: EvalConfig, page: Page | None, report: EvalReport, measured: Measured, listen: Listener
) -> None:
    if config.per_image is not None:
        images = [pair.name for pair in measured.pairs.values()]
        names = [result.name for result in report.results]
        content = per_image_file(config.per_image, images, names, measured.values)
        write_output(config.per_image, content, listen)
    if page is not None:
        page.write(source_name(config.gt), report, measured.pairs, measured.values, listen)


def _base_versions() -> dict[str, str]:
    return versions() | {"numpy": np.__version__, "pillow": PIL.__version__}
