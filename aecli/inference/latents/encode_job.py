"""The work of `encode` on a batch, and what is known of it afterwards."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aecli.data.decoding.conversions import ConversionCounts
from aecli.data.image_ref import ImageRef
from aecli.errors import ModelError, single_line
from aecli.inference.image_batches import read_images
from aecli.inference.latents.folder import Index, PartRecord
from aecli.inference.latents.layouts import EncodedBatch, PartWriter, Rows
from aecli.inference.latents.row_store import RowType
from aecli.inference.latents.statistics import Moments, add_moments
from aecli.inference.loaded_model import LoadedModel


@dataclass(frozen=True)
class BatchRecord:
    """What is known of a batch; `codes` are the places codebook · size + code that occur, and how often."""

    unreadable: Mapping[str, str]
    conversions: ConversionCounts
    moments: Moments | None = None
    codes: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
    codebooks: int = 0
    types: Mapping[str, RowType] = field(default_factory=dict)


@dataclass(frozen=True)
class EncodeJob:
    """The work on a batch, from file to file; workers wait for each other only to use an accelerator."""

    loaded: LoadedModel
    images: Sequence[ImageRef]
    writer: PartWriter | None
    index: Index | None
    hint: str
    lock: AbstractContextManager[Any]

    def run(self, positions: Sequence[int]) -> BatchRecord:
        """Write the latents of the images at these positions."""
        found = read_images([self.images[position] for position in positions], self.loaded.read_image)
        if not found.readable:
            return BatchRecord(found.unreadable, found.counts)
        images = [image for image, _ in found.readable]
        pixels = np.stack([pixels for _, pixels in found.readable])
        with self.lock:
            rows = self._rows(images, pixels)
            mirrored = pixels[..., ::-1].copy()
            flipped = self._rows(images, mirrored) if self.index is not None and self.index.flip else None
        done = BatchRecord(found.unreadable, found.counts, Moments.of(rows.latents), *self._codes(rows))
        if self.writer is None:
            return done
        kept = [position for position in positions if self.images[position].name not in found.unreadable]
        batch = EncodedBatch(kept, images, self._scaled(rows), None if flipped is None else self._scaled(flipped))
        self.writer.add(batch)
        return replace(done, types=self.writer.row_types(batch))

    def _rows(self, images: Sequence[ImageRef], pixels: NDArray[np.uint8]) -> Rows:
        latents, log_variances = self.loaded.latents(self.loaded.batch(pixels), self.hint)
        expected = self.loaded.model.latent_shape(self.loaded.image_size)
        if latents.shape[1:] != expected:
            raise ModelError(f"{self.loaded.name}: latents of shape {latents.shape[1:]}, where it says {expected}")
        if not np.isfinite(latents).all():
            names = [image.name for image, each in zip(images, latents, strict=True) if not np.isfinite(each).all()]
            raise ModelError(f"the latents of {single_line(names[0])} are not finite\nhint: try --precision fp32")
        with torch.inference_mode():
            codes = self.loaded.model.indices(torch.from_numpy(latents).to(self.loaded.placement.device))
        return Rows(latents, log_variances, None if codes is None else codes.to("cpu", torch.int32).numpy())

    def _codes(self, rows: Rows) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]] | None, int]:
        size = self.loaded.model.codebook_size
        if rows.codes is None or size is None:
            return None, 0
        codebooks = rows.codes.shape[1]
        offsets = size * np.arange(codebooks).reshape(1, -1, *[1] * (rows.codes.ndim - 2))
        return np.unique(rows.codes + offsets, return_counts=True), codebooks

    def _scaled(self, rows: Rows) -> Rows:
        scaling = None if self.index is None else self.index.latent_scaling
        return rows if scaling is None else replace(rows, latents=scaling.apply(rows.latents))


def merge_records(results: Sequence[BatchRecord], codebook_size: int | None) -> PartRecord:
    """Return what is known of a part by what is known of its batches, in their order."""
    unreadable = {name: reason for each in results for name, reason in each.unreadable.items()}
    conversions = ConversionCounts()
    counts: NDArray[np.int64] | None = None
    for each in results:
        conversions.update(each.conversions)
        if each.codes is not None and codebook_size is not None:
            if counts is None:
                counts = np.zeros((each.codebooks, codebook_size), np.int64)
            places, often = each.codes
            counts.reshape(-1)[places] += often
    return PartRecord(unreadable, conversions, add_moments(each.moments for each in results), counts)
