"""The images of a run: listed, split, decoded once, and on the device if they fit."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from aecli.configs import TrainConfig
from aecli.configs.checks import RANDOM_CROP
from aecli.configs.given_images import GivenImages
from aecli.data.batches import evenly_spaced
from aecli.data.decoding.colour import parse_colour
from aecli.data.decoding.conversions import ConversionCounts
from aecli.data.decoding.decode import Pixels, fit, whole_limit
from aecli.data.image_ref import data_fingerprint
from aecli.data.inventory import Listing, list_source
from aecli.data.packs.on_the_fly import OnTheFly
from aecli.data.packs.pack import Pack, pack_images
from aecli.data.packs.whole import Images, Pieces, WholeImages, epoch_places, epoch_scales
from aecli.data.sources.given import read_given
from aecli.data.sources.registry import ImageRef, split_indices
from aecli.data.sources.shards import Shards
from aecli.data.streams import Stream
from aecli.errors import DataError, summarize
from aecli.inference.latents.labels import label_images
from aecli.progress import Listener, Notice, Progress, Stopped, StopRequest, ignore
from aecli.training.events import TrainReport

Result = TypeVar("Result")

SPLIT_RULE = "validation where sha256(name), read as a fraction, is below val_fraction"
_NO_SPLIT = "all of data, all of val_data"
_RESIDENT_FRACTION = 0.25  # of a CUDA device's free memory, for the images
_UPLOAD_BYTES = 2**28


@dataclass(frozen=True)
class ImageSet:
    """The `rows` of images uint8 (N, 3, S, S); `resident` are the same images on the device.

    `labels` (N,) are the images' classes, by number, where a prior learns them too.

    Of whole pictures, pieces of `piece_size` pixels a side are trained on, `resized` ones of any scale, and `still` is
    the fit of the pictures where they are shown; it is None for images of one size.
    """

    images: Images
    rows: NDArray[np.integer]
    resident: torch.Tensor | None = None
    piece_size: int | None = None
    resized: bool = False
    still: str = "crop"
    labels: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, images: Images, rows: Sequence[int], **pieces: Any) -> "ImageSet":
        """Some rows of `images`, ascending; OnTheFly replaces unreadable images by others of these."""
        chosen = np.array(rows, dtype=int)
        return cls(images.subset(chosen) if isinstance(images, OnTheFly) else images, chosen, **pieces)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def skipped(self) -> Mapping[str, str]:
        """Images that turned out to be unreadable during training (name → reason)."""
        return self.images.skipped if isinstance(self.images, OnTheFly) else {}

    def evenly_spaced(self, count: int) -> Pixels:
        """At most `count` of the images, uint8 (n, 3, S, S), evenly spaced; of whole pictures as `still` says."""
        rows = self.rows[evenly_spaced(len(self), count)]
        if self.piece_size is None:
            assert not isinstance(self.images, WholeImages)  # for the type checker
            return self.images[rows]
        size = self.piece_size
        stills = [fit(self.images[row].transpose(1, 2, 0), size, self.still).transpose(2, 0, 1) for row in rows]
        return np.stack(stills) if stills else np.empty((0, 3, size, size), np.uint8)

    @property
    def conversions(self) -> ConversionCounts:
        """What decoding did to images so far, if they are decoded on the fly."""
        return self.images.conversions if isinstance(self.images, OnTheFly) else ConversionCounts()

    @property
    def whole(self) -> WholeImages | OnTheFly | None:
        """The pictures, if they are whole ones."""
        is_whole = self.piece_size is not None and isinstance(self.images, WholeImages | OnTheFly)
        return self.images if is_whole else None  # type: ignore[return-value]

    @property
    def nearest(self) -> NDArray[Any] | OnTheFly | torch.Tensor:
        """The images on the device, if they are there; they are of one size."""
        assert not isinstance(self.images, WholeImages)  # for the type checker
        return self.images if self.resident is None else self.resident

    def of_epoch(self, seed: int, epoch: int) -> NDArray[Any] | OnTheFly | Pieces | torch.Tensor:
        """What an epoch trains on: the images, or a piece of each whole picture, which follows from (seed, epoch)."""
        if self.piece_size is None or self.whole is None:
            return self.nearest
        count = len(self.whole)
        scales = epoch_scales(count, seed, epoch) if self.resized else None
        return Pieces(self.whole, self.piece_size, epoch_places(count, seed, epoch), scales)


def bring_to_device(train: ImageSet, val: ImageSet, device: torch.device) -> tuple[ImageSet, ImageSet]:
    """Copy packed images to a CUDA device if they take a small part of its memory, so that steps transfer nothing."""
    if device.type != "cuda":
        return train, val
    whole = {id(each.images): each.images for each in (train, val) if isinstance(each.images, np.ndarray)}
    free, _ = torch.cuda.mem_get_info(device)
    if sum(images.nbytes for images in whole.values()) > _RESIDENT_FRACTION * free:
        return train, val
    copies = {key: upload(images, device) for key, images in whole.items()}  # both sets may be of one pack
    return (
        replace(train, resident=copies.get(id(train.images))),
        replace(val, resident=copies.get(id(val.images))),
    )


def upload(images: NDArray[Any], device: torch.device) -> torch.Tensor:
    """Return uint8 (N, 3, S, S) on `device`, channels innermost, copied in chunks to need little main memory."""
    count, channels, height, width = images.shape
    dtype = torch.from_numpy(np.empty(0, images.dtype)).dtype
    copy = torch.empty((count, height, width, channels), dtype=dtype, device=device).permute(0, 3, 1, 2)
    at_once = max(1, _UPLOAD_BYTES // max(1, images[:1].nbytes))
    for start in range(0, len(images), at_once):
        copy[start : start + at_once] = torch.from_numpy(np.array(images[start : start + at_once]))
    return copy


def read_given_images(config: TrainConfig, should_stop: StopRequest) -> Generator[TrainReport, None, TrainConfig]:
    """Return the config with the fingerprints of images that were given in Python, by which their run is known.

    Raises:
        DataError: they are no pictures, or can't be listed.
        Stopped: `should_stop` returned True.
    """
    changes = {}
    for name, source in (("data", config.data.source), ("val_data", config.data.val_source)):
        if isinstance(source, GivenImages):
            reading = read_given(source)
            changes[name] = yield from _stoppable(reading, should_stop)
    return config.replace(**changes) if changes else config


def list_sources(config: TrainConfig, listen: Listener = ignore) -> dict[str, Listing]:
    """List what `data` and, where it is given, `val_data` hold; the folder that the run is written to is left out.

    Raises:
        DataError: as `list_source`.
    """
    outputs = [config.run.out] if config.run.out else []
    listings: dict[str, Listing] = {}
    for key, source in (("data", config.data.source), ("val_data", config.data.val_source)):
        if source is not None:
            listings[key] = list_source(source, listen, outputs, streams=key == "data")
    return listings


def count_images(config: TrainConfig, listings: Mapping[str, Listing]) -> tuple[int | None, int | None]:
    """Return how many images would train and validate, None for a stream.

    They are those listed: some may turn out to be unreadable.

    Raises:
        DataError: none is left to train on.
    """
    images = listings["data"].images
    val = len(listings["val_data"].images or ()) if "val_data" in listings else 0
    if images is None:
        Shards(config.data.source)  # fails where there are none
        return None, val
    if "val_data" in listings:
        return len(images), val
    train, held_out = split_indices(images, config.data.val_fraction)
    if not train:
        raise DataError(f"{config.data.source}: no image is left to train on")
    return len(train), len(held_out)


def gather_images(
    config: TrainConfig, listings: Mapping[str, Listing], should_stop: StopRequest
) -> Generator[TrainReport, None, tuple[ImageSet | Stream, ImageSet, dict[str, Any]]]:
    """Split and decode; return training images, validation images and the record of them for config.json.

    A stream is only opened, never split: validation is on `--val-data` or absent.

    Raises:
        AecliError: images or a cache can't be used.
        Stopped: `should_stop` returned True.
    """
    data = config.data
    listed = listings["data"].images
    if listed is None:
        return (yield from _open_stream(config, listings, should_stop))
    labels = label_images(listed, data.labels)
    pack = yield from _decode_once(config, data.source, listed, data.train_fit, should_stop)
    if data.val_source is None:
        kept = [image for image in listed if image.name not in pack.skipped]
        rows, val_rows = split_indices(kept, data.val_fraction)
        if data.train_fit == data.fit:
            val = ImageSet.of(pack.images, val_rows, piece_size=_piece_size(config))
        else:  # what was converted in them is told already
            held_out = yield from _decode_once(
                config, data.source, [kept[row] for row in val_rows], data.fit, should_stop, tells=False
            )
            val = ImageSet.of(held_out.images, range(len(held_out.names)))
        val_record, rule = None, {"rule": SPLIT_RULE, "val_fraction": data.val_fraction}
    else:
        rows, rule = list(range(len(pack.names))), {"rule": _NO_SPLIT}
        classes = labels.classes if labels else None
        val, val_record = yield from _validation_images(config, listings["val_data"], should_stop, classes)
    size = data.image_size if data.train_fit == RANDOM_CROP else None
    still = "crop" if data.fit == RANDOM_CROP else data.fit
    train = ImageSet.of(pack.images, rows, piece_size=size, resized=data.resized_crops, still=still)
    if labels is not None:
        train = replace(train, labels=_of_pack(labels.numbers, listed, pack))
        if data.val_source is None:
            val = replace(val, labels=train.labels)
    if len(train) == 0:
        raise DataError(f"--data {data.source}: no image is left to train on\nhint: a smaller --val-fraction")
    if data.resized_crops and isinstance(pack.images, WholeImages):
        short_sides = (min(pack.images[row].shape[1:]) for row in rows)
        if max(short_sides) <= data.image_size:
            yield Notice(f"--resized-crops: no training image has a short side above --image-size {data.image_size}: "
                         "crops have one scale")  # fmt: skip
    split = {"train": len(train), "val": len(val), **rule}
    return train, val, {"data": _record(data.source, listed, pack), "val_data": val_record, "split": split}


def _validation_images(
    config: TrainConfig, listing: Listing, should_stop: StopRequest, classes: Sequence[str] | None = None
) -> Generator[TrainReport, None, tuple[ImageSet, dict[str, Any]]]:
    """Return validation images of their own source; their labels are numbers among `classes`, or the count of these."""
    listed = listing.images
    assert listed is not None  # only training images are streamed
    pack = yield from _decode_once(config, listing.source, listed, config.data.fit, should_stop)
    found = ImageSet.of(pack.images, range(len(pack.names)), piece_size=_piece_size(config))
    if classes is not None:
        labels = label_images(listed, config.data.labels)
        numbers = np.full(len(listed), len(classes)) if labels is None else labels.among(classes)
        found = replace(found, labels=_of_pack(numbers, listed, pack))
    return found, _record(listing.source, listed, pack)


def _of_pack(numbers: NDArray[np.int64], listed: Sequence[ImageRef], pack: Pack) -> NDArray[np.int64]:
    """Return the numbers of the images that a pack holds, of those of all that were listed."""
    by_name = {image.name: number for image, number in zip(listed, numbers.tolist(), strict=True)}
    return np.array([by_name[name] for name in pack.names], np.int64)


def _piece_size(config: TrainConfig) -> int | None:
    """Of validation images."""
    return config.data.image_size if config.data.fit == RANDOM_CROP else None


def _open_stream(
    config: TrainConfig, listings: Mapping[str, Listing], should_stop: StopRequest
) -> Generator[TrainReport, None, tuple[Stream, ImageSet, dict[str, Any]]]:
    data, side, val_record = config.data, config.data.image_size, None
    stream = Stream(data.source, side, data.fit, config.run.seed, config.optimization.batch_size, data.shuffle_buffer,
                    config.run.workers, data.flip, parse_colour(data.background), data.skip_broken, data.turns,
                    data.resized_crops)  # fmt: skip
    if data.val_source is None:
        val = ImageSet(np.empty((0, 3, side, side), dtype=np.uint8), np.arange(0))
        yield Notice(f"{data.source} is a stream, so nothing is held out for validation; name images with --val-data")
    else:
        val, val_record = yield from _validation_images(config, listings["val_data"], should_stop)
    source = {"source": data.source, "images": None, "shards": len(stream.shards), "lanes": stream.shard_groups,
              "fingerprint": listings["data"].fingerprint or stream.fingerprint}  # fmt: skip
    split = {"train": None, "val": len(val), "rule": _NO_SPLIT}
    return stream, val, {"data": source, "val_data": val_record, "split": split}


def _decode_once(
    config: TrainConfig,
    source: str,
    listed: Sequence[ImageRef],
    fit: str,
    should_stop: StopRequest,
    tells: bool = True,
) -> Generator[TrainReport, None, Pack]:
    """Return the decoded images; what is said of them beside those that can't be read is left out unless `tells`."""
    data = config.data
    packing = pack_images(listed, data.image_size, fit, data.cache, config.run.workers,
                          parse_colour(data.background), data.skip_broken)  # fmt: skip
    pack = yield from _stoppable(packing, should_stop)
    if pack.skipped:
        named = summarize(pack.skipped)
        yield Notice(f"skipped {len(pack.skipped)} of {len(listed)} images that can't be read: {named}")
    if not tells:
        return pack
    for text in pack.conversions.notices(source, data.background):
        yield Notice(text)
    for count, what in (
        (pack.small, f"have a short side below --image-size {data.image_size}, to which their pieces are resized up"),
        (pack.reduced, f"are reduced to a short side of {whole_limit(data.image_size)} pixels or less: very large"),
    ):
        if count:
            yield Notice(f"{source}: {count:,} of {len(listed):,} images {what}")
    return pack


def _stoppable(
    work: Generator[Progress | Notice, None, Result], should_stop: StopRequest
) -> Generator[TrainReport, None, Result]:
    """Pass on the reports of `work` and return its result; raises Stopped once `should_stop` returns True."""
    with closing(work):
        while True:
            try:
                report = next(work)
            except StopIteration as finished:
                result: Result = finished.value
                return result
            if should_stop():
                raise Stopped
            yield report


def _record(source: str, listed: Sequence[ImageRef], pack: Pack) -> dict[str, Any]:
    """The record of a source in config.json. Its fingerprint, of names and sizes, is equal for a copy of a folder."""
    return {
        "source": source,
        "images": len(pack.names),
        "skipped": None if isinstance(pack.images, OnTheFly) else sorted(pack.skipped),  # not known before training
        "fingerprint": data_fingerprint(listed),
        "conversions": None if isinstance(pack.images, OnTheFly) else pack.conversions.to_json(),
    }
