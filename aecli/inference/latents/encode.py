"""Latents of images in a folder, as trainers of diffusion models read them."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from aecli.configs import EncodeConfig
from aecli.data.batches import evenly_spaced
from aecli.data.decoding.conversions import ConversionCounts
from aecli.data.image_ref import ImageRef, data_fingerprint, require_same_images
from aecli.errors import DataError, count_of
from aecli.inference.image_batches import batch_limits, most_workers, require_distinct_names
from aecli.inference.latents.encode_job import BatchRecord, EncodeJob, merge_records
from aecli.inference.latents.folder import STATISTICS, Index, LatentFolder, PartRecord, read_statistics
from aecli.inference.latents.labels import label_images
from aecli.inference.latents.layouts import LAYOUTS, Encoding, Layout, PartWriter, require_maps
from aecli.inference.latents.statistics import CodeStatistics, LatentSetStatistics, add_moments
from aecli.inference.loaded_model import MEMORY_HINT, LoadedModel, load_model
from aecli.models.latent_scaling import LatentScaling
from aecli.progress import Listener, Notice, Progress, ignore
from aecli.runs.images import choose_images, source_of
from aecli.runtime.distributed import Distributed
from aecli.runtime.threads import device_lock, worker_count
from aecli.runtime.work_queue import map_shared
from aecli.storage.strict_json import SCHEMA

_OUTPUTS = Path("latents")
_MEASURED = 4096  # evenly spaced images that a scaling factor is measured on


@dataclass(frozen=True)
class EncodeResult:
    """The folder, what is in it, and the statistics of the latents.

    `conversions` says of the SOURCE what reading did to its images, as `ConversionCounts.to_json` does.
    """

    out: Path
    index: Index
    statistics: LatentSetStatistics
    conversions: dict[str, Any]


def encode(config: EncodeConfig, listen: Listener = ignore) -> EncodeResult:
    """Write the latents of images to a folder; unreadable images are skipped and named.

    The same call goes on where an earlier one was stopped, however it ended. Under torchrun all processes must call
    this: they divide the images and return the same result, and the main process's `listen` is called.

    Raises:
        AecliError: a model, images or the folder can't be used; PeerError if another process failed.
    """
    with Distributed() as distributed:
        return _encode(config, distributed, listen if distributed.is_main_process else ignore)


def _encode(config: EncodeConfig, distributed: Distributed, listen: Listener) -> EncodeResult:
    loaded = load_model(config.model, config.runs, config.device, config.precision, listen, config.image_size,
                        config.fit, config.background)  # fmt: skip
    loaded = loaded.of_one_size("latents have", listen)
    layout = LAYOUTS[config.format]
    require_maps(layout, config.format, loaded.model.latent_shape(loaded.image_size))
    out = config.out or _OUTPUTS / loaded.located.label
    split = config.split or "all"
    images = choose_images(loaded.located, config.data, split, listen, [out, _OUTPUTS])
    require_distinct_names(images)
    layout.check(images, config.flip)
    labels = label_images(images, config.labels)
    folder, source = LatentFolder(out), source_of(loaded.located, config.data, split)
    with ExitStack() as stack:
        opened = None
        if distributed.is_main_process:
            classes = None if labels is None else list(labels.classes)
            opened = stack.enter_context(folder.opened(_index(config, loaded, layout, images, classes), listen))
        distributed.barrier()
        require_same_images(images, config.data or f"{loaded.located.label}'s run", distributed)
        index: Index = distributed.broadcast_object(opened)
        if not index.complete:
            work = _Work(config, loaded, layout, images, distributed, listen)
            if layout.is_scaled and index.latent_scaling is None:
                index = replace(index, latent_scaling=work.scaling())
                if distributed.is_main_process:
                    folder.write_index(index)
            if config.format == "edm2" and not work.has_posterior():
                listen(Notice(f"{loaded.name} has no posterior: its standard deviations are written as 0"))
            encoding = Encoding(folder, index, images, labels, distributed)
            work.encode(encoding)
            index = distributed.broadcast_object(
                _finish(encoding, layout, loaded) if distributed.is_main_process else None
            )
        counts = ConversionCounts.from_json(index.conversions, index.written)
        for text in counts.notices(source, loaded.background):
            listen(Notice(text))
        statistics = distributed.broadcast_object(read_statistics(out) if distributed.is_main_process else None)
        distributed.barrier()
    return EncodeResult(out, index, statistics, {source: index.conversions})


def _index(
    config: EncodeConfig, loaded: LoadedModel, layout: Layout, images: Sequence[ImageRef], classes: list[str] | None
) -> Index:
    return Index(
        config.format, loaded.name, loaded.sha256, loaded.image_size, loaded.fit, loaded.background,
        loaded.placement.precision, config.dtype, config.flip or layout.always_flips, config.labels,
        data_fingerprint(images), len(images), config.shard_size, list(loaded.model.latent_shape(loaded.image_size)),
        config.scaling_factor, None, classes,
    )  # fmt: skip


@dataclass(frozen=True)
class _Work:
    """What all processes do together."""

    config: EncodeConfig
    loaded: LoadedModel
    layout: Layout
    images: Sequence[ImageRef]
    distributed: Distributed
    listen: Listener

    def scaling(self) -> LatentScaling:
        """Return how latents are to be scaled: as is asked for, as the model says, or by what is measured."""
        own, asked = self.loaded.latent_scaling, self.config.scaling_factor
        if asked is not None:
            return LatentScaling((asked,), own.shift)
        if not own.is_identity:
            self.loaded.tell_scaling(self.listen)
            return own
        positions = evenly_spaced(len(self.images), _MEASURED).tolist()
        done = self._map(positions, None, "measuring", self.listen)
        moments = add_moments(each.moments for each in done)
        scaling = LatentScaling() if moments is None else moments.scaling
        self.listen(Notice(
            f"scaling factor {scaling.factor[0]:.6g}, measured on {count_of(len(positions), 'image')}: for other "
            f"images of this model, --scaling-factor {scaling.factor[0]!r}"
        ))  # fmt: skip
        return scaling

    def has_posterior(self) -> bool:
        """Whether the model gives log variances."""
        side = self.loaded.image_size
        return self.loaded.latents(self.loaded.batch(np.zeros((1, 3, side, side), np.uint8)))[1] is not None

    def encode(self, encoding: Encoding) -> None:
        """Encode the parts that are not done yet, one after the other."""
        folder, size = encoding.folder, encoding.index.shard_size
        known = {number for number, _ in folder.read_records()} if self.distributed.is_main_process else None
        done: set[int] = self.distributed.broadcast_object(known)
        parts = [range(start, min(start + size, len(self.images))) for start in range(0, len(self.images), size)]
        finished = sum(len(parts[number]) for number in done)
        for number, positions in enumerate(parts):
            if number in done:
                continue
            with self.layout.part(encoding, number, positions) as writer:
                listen = _overall(self.listen, finished, len(self.images))
                results = self._map(positions, writer, f"encoding {number}", listen, encoding.index)
                if self.distributed.is_main_process:
                    folder.write_record(number, self._record(writer, positions, results))
                self.distributed.barrier()
            finished += len(positions)

    def _record(self, writer: PartWriter, positions: range, results: Sequence[BatchRecord]) -> PartRecord:
        """Finish a part, and return its record."""
        record = merge_records(results, self.loaded.model.codebook_size)
        readable = [position for position in positions if self.images[position].name not in record.unreadable]
        writer.finish(readable, next((each.types for each in results if each.types), {}))
        return record

    def _map(
        self, positions: Sequence[int], writer: PartWriter | None, task: str, listen: Listener,
        index: Index | None = None,
    ) -> list[BatchRecord]:  # fmt: skip
        """Return what is known of each batch of the images at these positions, written to `writer`."""
        size, _ = batch_limits(self.loaded, self.config.batch_size)
        batches = [positions[start : start + size] for start in range(0, len(positions), size)]
        hint = f"a smaller --batch-size than {self.config.batch_size}, --workers 1, {MEMORY_HINT}"
        job = EncodeJob(self.loaded, self.images, writer, index, hint, device_lock(self.loaded.placement.device.type))
        workers = most_workers(self.loaded, worker_count(self.config.workers))
        return map_shared(job.run, batches, task, workers, self.distributed, listen)


def _overall(listen: Listener, before: int, total: int) -> Listener:
    """Return a listener that reports the progress of a part as that of all."""

    def report(given: Progress | Notice) -> None:
        listen(Progress("encoding", before + given.done, total) if isinstance(given, Progress) else given)

    return report


def _finish(encoding: Encoding, layout: Layout, loaded: LoadedModel) -> Index:
    """Write the statistics, what readers want beside the latents, and the index of the whole folder."""
    folder, index = encoding.folder, encoding.index
    unreadable: dict[str, str] = {}
    conversions = ConversionCounts()
    moments, counts = None, None
    for _, record in folder.read_records():
        unreadable.update(record.unreadable)
        conversions.update(record.conversions)
        moments = add_moments([moments, record.moments])
        counts = record.counts if counts is None else counts + (0 if record.counts is None else record.counts)
    readable = [position for position, image in enumerate(encoding.images) if image.name not in unreadable]
    if moments is None:
        raise DataError(f"none of the {count_of(len(encoding.images), 'image')} can be read")
    own = None if loaded.latent_scaling.is_identity else loaded.latent_scaling
    statistics = LatentSetStatistics(
        len(readable), moments.mean.tolist(), moments.std.tolist(), float(moments.mean.mean()), moments.overall_std,
        index.latent_scaling or own or moments.scaling,
        None if counts is None else CodeStatistics.of(counts),
    )  # fmt: skip
    layout.finish(encoding, readable, statistics)
    folder.write_json(STATISTICS, {"schema": SCHEMA, **statistics.to_json()})
    return folder.complete(
        replace(index, written=len(readable), unreadable=unreadable, conversions=conversions.to_json(),
                names=layout.names(encoding, readable))
    )  # fmt: skip
