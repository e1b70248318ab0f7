"""The autoencoder whose latents a prior learns, and those latents of a run's images."""

import os
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aecli.configs import TrainConfig
from aecli.data.batches import evenly_spaced, iterate
from aecli.data.streams import Stream
from aecli.errors import ConfigError, DataError, ModelError
from aecli.inference.loaded_model import LoadedModel, load_model
from aecli.models import registry
from aecli.models.base import Prior
from aecli.models.options import FlowOptions
from aecli.progress import Progress, Stopped, StopRequest
from aecli.runtime.distributed import Distributed
from aecli.training.events import TrainReport
from aecli.training.inputs.image_sets import ImageSet

_BATCH = 32  # images encoded at once, where the device takes so many
_MOST_FITTED = 4096  # images, spread over all, that show how latents are best reduced


@dataclass(frozen=True)
class LatentEncoder:
    """A trained autoencoder whose latents a prior learns."""

    loaded: LoadedModel

    @property
    def shape(self) -> tuple[int, int, int]:
        """Its latents' (channels, side, side); one of numbers without places has a side of 1."""
        return as_places(self.loaded.model.latent_shape(self.loaded.image_size))

    def latents(self, images: Tensor) -> Tensor:
        """Return the latents float32 (N, channels, side, side) of images float32 (N, 3, S, S), on the CPU."""
        latents, _ = self.loaded.latents(images)
        return torch.from_numpy(latents).reshape(-1, *self.shape)

    def record(self) -> dict[str, str]:
        """What config.json says of it: where its weights lie, and which they are."""
        return {"path": os.path.realpath(self.loaded.located.checkpoint), "sha256": self.loaded.sha256}


def as_places(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return a latent's shape as (channels, side, side).

    Raises:
        ModelError: it is neither that nor (channels,).
    """
    if len(shape) == 1:
        return (shape[0], 1, 1)
    if len(shape) == 3 and shape[1] == shape[2]:
        return (shape[0], shape[1], shape[2])
    raise ModelError(f"latents of shape {'×'.join(map(str, shape))}: a prior learns those of channels × side × side")


def resolve_model(config: TrainConfig) -> tuple[Any, LatentEncoder | None]:
    """Return the model's options, worked out, and for a prior the autoencoder that it is of.

    Raises:
        ConfigError: options that the model doesn't have, or that don't fit the autoencoder's.
        AecliError: another of its kinds, for an autoencoder that can't be used.
    """
    if not issubclass(registry.load(config.model.name), Prior):
        if config.model.autoencoder is not None:
            raise ConfigError(
                f"--model {config.model.autoencoder}: {config.model.name} is no prior, which learns another's latents"
            )
        return registry.resolve_options(config.model.name, config.model.options, config.model.defaults), None
    if config.model.autoencoder is None:
        raise ConfigError(f"--model: which autoencoder's latents? such as: aecli train {config.model.name} --model vae")
    loaded = load_model(config.model.autoencoder, config.run.runs, config.run.device)
    path = loaded.located.checkpoint
    for flag, given, its in (
        ("--image-size", config.data.image_size, loaded.image_size),
        ("--fit", config.data.fit, loaded.fit),
    ):
        if given != its:
            raise ConfigError(f"{flag} {given}: {path} was trained with {its}")
    encoder = LatentEncoder(loaded)
    channels, side, _ = encoder.shape
    filled_in = {"latent_channels": channels, "side": side}
    if wrong := [key for key, value in filled_in.items() if str(config.model.options.get(key, value)) != str(value)]:
        raise ConfigError(f"--option {wrong[0]}={config.model.options[wrong[0]]}: {path} has {filled_in[wrong[0]]}")
    defaults = {"channels": FlowOptions.channels, **config.model.defaults}
    defaults = {**defaults, "channels": min(defaults["channels"], channels), **filled_in}
    return registry.resolve_options(config.model.name, config.model.options, defaults), encoder


def encode_sets(
    train: ImageSet | Stream,
    val: ImageSet,
    encoder: LatentEncoder,
    prior: Prior,
    is_fitted: bool,
    config: TrainConfig,
    distributed: Distributed,
    should_stop: StopRequest,
) -> Generator[TrainReport, None, tuple[ImageSet, ImageSet]]:
    """Return sets of what `prior` learns from, in place of the images: their latents, reduced.

    A prior that is not fitted is, on the training images. With `flip`, the latents of their mirror images are in the
    set too. Processes share the work.

    Raises:
        DataError: the images are a stream.
        Stopped: `should_stop` said so.
    """
    if isinstance(train, Stream):
        raise DataError(
            f"--data {config.data.source}: a stream has no end; a prior learns a set of images, so name one"
        )
    chosen = evenly_spaced(len(train), _MOST_FITTED)
    views = [(train, train.rows, mirrored) for mirrored in ((False, True) if config.data.flip else (False,))]
    views.append((val, val.rows, False))
    total = (0 if is_fitted else len(chosen)) + sum(len(rows) for _, rows, _ in views)
    done, device = 0, next(prior.buffers()).device
    if not is_fitted:
        for latents in (
            _encode(train, train.rows[chosen], False, encoder, should_stop) if distributed.is_main_process else ()
        ):
            prior.partial_fit(latents)
            done += len(latents)
            yield Progress("encoding", done, total)
        if distributed.is_main_process:
            prior.fit()
        distributed.barrier()
        distributed.broadcast_tensors(prior.buffers())
        done = len(chosen)
    sets: list[NDArray[np.float32]] = []
    for images, rows, mirrored in views:
        first, last = (
            len(rows) * distributed.rank // distributed.world_size,
            len(rows) * (distributed.rank + 1) // distributed.world_size,
        )
        mine = [np.empty((0, *prior.example_shape(config.data.image_size)), np.float32)]
        for latents in _encode(images, rows[first:last], mirrored, encoder, should_stop):
            mine.append(prior.whiten(latents.to(device)).cpu().numpy())
            yield Progress("encoding", done + distributed.world_size * sum(map(len, mine)), total)
        sets.append(np.concatenate(distributed.all_gather(np.concatenate(mine))))
        done += len(rows)
    *parts, held_out = sets
    examples = np.concatenate(parts)
    return ImageSet(examples, np.arange(len(examples))), ImageSet(held_out, np.arange(len(held_out)))


def _encode(
    images: ImageSet, rows: NDArray[np.integer], mirrored: bool, encoder: LatentEncoder, should_stop: StopRequest
) -> Iterator[Tensor]:
    """Yield the latents of those rows of `images`, a batch at a time."""
    placement = encoder.loaded.placement
    at_once = encoder.loaded.device_batch_size(_BATCH)
    with closing(iterate(images.images, rows, at_once, placement.device, placement.channels_last)) as batches:
        for batch in batches:
            if should_stop():
                raise Stopped
            yield encoder.latents(batch.flip(-1) if mirrored else batch)
