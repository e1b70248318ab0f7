"""The images of a run: listed, split, decoded once, and on the device where they fit."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aecli.configs import TrainConfig
from aecli.data.batches import evenly_spaced
from aecli.data.decoding.decode import Pixels
from aecli.data.image_ref import data_fingerprint
from aecli.data.packs.on_the_fly import Images, OnTheFly
from aecli.data.packs.pack import Pack, pack_images
from aecli.data.sources.registry import ImageRef, list_images, split_indices
from aecli.data.streams import Stream, is_stream
from aecli.errors import DataError, summarize
from aecli.progress import Notice, Stopped, StopRequest
from aecli.training.events import TrainReport

SPLIT_RULE = "validation where sha256(name), read as a fraction, is below val_fraction"
_NO_SPLIT = "all of data, all of val_data"
_RESIDENT_SHARE = 0.25  # of a CUDA device's free memory, for the images
_UPLOAD_BYTES = 2**28


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 (N, 3, S, S), and the rows of them that count; `resident` are the same images on the device."""

    images: Images
    rows: NDArray[np.integer]
    resident: torch.Tensor | None = None

    @classmethod
    def of(cls, images: Images, rows: Sequence[int]) -> "ImageSet":
        """Some rows of `images`, ascending; of what is decoded on the fly, no other row takes the place of one."""
        chosen = np.array(rows, dtype=int)
        return cls(images.subset(chosen) if isinstance(images, OnTheFly) else images, chosen)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def skipped(self) -> Mapping[str, str]:
        """Images that turned out to be unreadable when they were asked for (name → reason)."""
        return self.images.skipped if isinstance(self.images, OnTheFly) else {}

    def evenly_spaced(self, count: int) -> Pixels:
        """At most `count` of the images, uint8 (n, 3, S, S), evenly from the first to the last."""
        return self.images[self.rows[evenly_spaced(len(self), count)]]

    @property
    def nearest(self) -> Images | torch.Tensor:
        """The images where batches are made of them soonest."""
        return self.images if self.resident is None else self.resident


def bring_to_device(train: ImageSet, val: ImageSet, device: torch.device) -> tuple[ImageSet, ImageSet]:
    """Copy the packed images to a CUDA device if they take a small part of its memory; else return them as they are.

    A step then reads nothing over the bus.
    """
    if device.type != "cuda":
        return train, val
    whole = {id(each.images): each.images for each in (train, val) if isinstance(each.images, np.ndarray)}
    free, _ = torch.cuda.mem_get_info(device)
    if sum(images.nbytes for images in whole.values()) > _RESIDENT_SHARE * free:
        return train, val
    copies = {key: upload(images, device) for key, images in whole.items()}  # one pack often holds both sets
    return (
        replace(train, resident=copies.get(id(train.images))),
        replace(val, resident=copies.get(id(val.images))),
    )


def upload(images: NDArray[Any], device: torch.device) -> torch.Tensor:
    """Return uint8 (N, 3, S, S) on `device`, copied in pieces so that no second copy is made in main memory.

    Channels lie innermost, as in a pack and in a batch.
    """
    count, channels, height, width = images.shape
    dtype = torch.from_numpy(np.empty(0, images.dtype)).dtype
    copy = torch.empty((count, height, width, channels), dtype=dtype, device=device).permute(0, 3, 1, 2)
    at_once = max(1, _UPLOAD_BYTES // max(1, images[:1].nbytes))
    for start in range(0, len(images), at_once):
        copy[start : start + at_once] = torch.from_numpy(np.array(images[start : start + at_once]))
    return copy


def gather_images(
    config: TrainConfig, should_stop: StopRequest
) -> Generator[TrainReport, None, tuple[ImageSet | Stream, ImageSet, dict[str, Any]]]:
    """List, split and decode; return training images, validation images and what config.json says of them.

    A stream is opened and no more: it is never split, so it is validated on `--val-data` or not at all.

    Raises:
        AecliError: one of its kinds, for images or a cache that can't be used.
        Stopped: `should_stop` said so.
    """
    if is_stream(config.data.source):
        return (yield from _open_stream(config, should_stop))
    listed = list_images(config.data.source)
    pack = yield from _decode_once(config, listed, should_stop)
    kept = [image for image in listed if image.name not in pack.skipped]
    record: dict[str, Any] = {"data": _record(config.data.source, listed, pack), "val_data": None}
    if config.data.val_source is None:
        train_rows, val_rows = split_indices(kept, config.data.val_fraction)
        train, val = ImageSet.of(pack.images, train_rows), ImageSet.of(pack.images, val_rows)
        record["split"] = {
            "train": len(train),
            "val": len(val),
            "rule": SPLIT_RULE,
            "val_fraction": config.data.val_fraction,
        }
    else:
        val_listed = list_images(config.data.val_source)
        val_pack = yield from _decode_once(config, val_listed, should_stop)
        train, val = (ImageSet(each.images, np.arange(len(each.names))) for each in (pack, val_pack))
        record["val_data"] = _record(config.data.val_source, val_listed, val_pack)
        record["split"] = {"train": len(train), "val": len(val), "rule": _NO_SPLIT}
    if len(train) == 0:
        raise DataError(f"{config.data.source}: no image is left to train on")
    return train, val, record


def _open_stream(
    config: TrainConfig, should_stop: StopRequest
) -> Generator[TrainReport, None, tuple[Stream, ImageSet, dict[str, Any]]]:
    stream = Stream(
        config.data.source, config.data.image_size, config.data.fit, config.run.seed, config.optimization.batch_size,
        config.data.shuffle_buffer, config.run.workers, config.data.flip,
    )  # fmt: skip
    side = config.data.image_size
    val, val_record = ImageSet(np.empty((0, 3, side, side), dtype=np.uint8), np.arange(0)), None
    if config.data.val_source is None:
        yield Notice(
            f"{config.data.source} is a stream, of which nothing is held out: to validate, name images by --val-data"
        )
    else:
        listed = list_images(config.data.val_source)
        pack = yield from _decode_once(config, listed, should_stop)
        val, val_record = (
            ImageSet(pack.images, np.arange(len(pack.names))),
            _record(config.data.val_source, listed, pack),
        )
    return stream, val, {
        "data": {
            "source": config.data.source, "images": None, "shards": len(stream.shards), "lanes": stream.shard_groups,
            "fingerprint": stream.fingerprint,
        },
        "val_data": val_record,
        "split": {"train": None, "val": len(val), "rule": _NO_SPLIT},
    }  # fmt: skip


def _decode_once(
    config: TrainConfig, listed: Sequence[ImageRef], should_stop: StopRequest
) -> Generator[TrainReport, None, Pack]:
    packing = pack_images(listed, config.data.image_size, config.data.fit, config.data.cache, config.run.workers)
    while True:
        try:
            progress = next(packing)
        except StopIteration as finished:
            pack: Pack = finished.value
            break
        if should_stop():
            packing.close()
            raise Stopped
        yield progress
    if pack.skipped:
        named = summarize(pack.skipped)
        yield Notice(f"skipped {len(pack.skipped)} of {len(listed)} images that can't be read: {named}")
    return pack


def _record(source: str, listed: Sequence[ImageRef], pack: Pack) -> dict[str, Any]:
    """What config.json says of a source. Its fingerprint takes names and sizes: a copy of a folder is the same data."""
    return {
        "source": source,
        "images": len(pack.names),
        "skipped": None if isinstance(pack.images, OnTheFly) else sorted(pack.skipped),  # not known before training
        "fingerprint": data_fingerprint(listed),
    }
