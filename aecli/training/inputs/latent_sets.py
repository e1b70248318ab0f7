"""Training data of a prior: the latents of a run's images, and the autoencoder that encodes them."""

import math
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aecli.configs import TrainConfig
from aecli.configs.checks import RANDOM_CROP
from aecli.data.batches import evenly_spaced, iterate
from aecli.data.streams import Stream
from aecli.errors import ConfigError, DataError, ModelError
from aecli.inference.loaded_model import LoadedModel, load_model
from aecli.models import registry
from aecli.models.base import Prior
from aecli.models.options import FlowOptions, default_base, default_patch
from aecli.progress import Progress, Stopped, StopRequest
from aecli.runs.folder import resolved
from aecli.runs.initial_weights import InitialWeights
from aecli.runtime.distributed import Distributed
from aecli.training.events import TrainReport
from aecli.training.inputs.image_sets import ImageSet

_BATCH = 32  # images encoded at once, at most
_MOST_FITTED = 4096  # evenly spaced images that the whitening is fitted to


@dataclass(frozen=True)
class LatentEncoder:
    """A trained autoencoder whose latents a prior learns."""

    loaded: LoadedModel
    makes_codes: bool = False  # in place of latents

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, side, side) of its latents; a vector has a side of 1."""
        return spatial_shape(self.loaded.model.latent_shape(self.loaded.image_size))

    @property
    def shape_options(self) -> dict[str, Any]:
        """The options of a prior that follow from its latents, or codes."""
        channels, side, _ = self.shape
        model = self.loaded.model
        if not self.makes_codes:
            return {"latent_channels": channels, "side": side}
        size, bits = model.codebook_size, model.bits_per_latent
        assert model.code_levels is not None and size is not None and bits is not None  # those of codes
        return {"levels": list(model.code_levels), "codebooks": round(bits / math.log2(size)), "side": side}

    def latents(self, images: Tensor) -> Tensor:
        """Return the latents float32 (N, channels, side, side) of images float32 (N, 3, S, S), on the CPU.

        Codes are int64 (N, codebooks, side, side).
        """
        latents = torch.from_numpy(self.loaded.latents(images)[0])
        return self.loaded.codes(latents) if self.makes_codes else latents.reshape(-1, *self.shape)

    def record(self) -> dict[str, str]:
        """Return its record in config.json: path and SHA-256 of its weights."""
        return {"path": resolved(self.loaded.located.checkpoint), "sha256": self.loaded.sha256}


def spatial_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return a latent's shape as (channels, side, side).

    Raises:
        ModelError: it is neither that nor (channels,).
    """
    if len(shape) == 1:
        return (shape[0], 1, 1)
    if len(shape) == 3 and shape[1] == shape[2]:
        return (shape[0], shape[1], shape[2])
    raise ModelError(f"latents of shape {'×'.join(map(str, shape))}: a prior needs channels × side × side")


def resolve_model(config: TrainConfig, init: InitialWeights | None) -> tuple[str, Any, LatentEncoder | None]:
    """Return the registered name of the model and its resolved options, and for a prior its autoencoder.

    Options that are not given are those of the weights that the run begins from. `prior` is another model where the
    autoencoder has codes.

    Raises:
        ConfigError: options that the model doesn't have, or that contradict the autoencoder's.
        AecliError: the autoencoder can't be used.
    """
    name = config.model.name
    if not issubclass(registry.load(name), Prior):
        if config.model.autoencoder is not None:
            raise ConfigError(f"--model {config.model.autoencoder}: {config.model.name} is no prior, which alone is "
                              "trained on another model's latents\nhint: leave --model out")  # fmt: skip
        if config.data.labels != "none":
            raise ConfigError(f"--labels {config.data.labels}: {config.model.name} learns no classes: a prior does\n"
                              "hint: aecli train prior --model MODEL --labels folders")  # fmt: skip
        defaults = {**config.model.defaults, **(init.document["options"] if init else {})}
        return name, registry.resolve_options(name, config.model.options, defaults), None
    if config.model.autoencoder is None:
        raise ConfigError(f"--model is missing: a prior is trained on the latents of an autoencoder\n"
                          f"hint: aecli train {config.model.name} --model vae")  # fmt: skip
    if config.data.fit == RANDOM_CROP:
        raise ConfigError(f"--fit {RANDOM_CROP}: a prior learns latents of one size\nhint: --fit crop")
    for flag, is_on in (("--turns", config.data.turns), ("--resized-crops", config.data.resized_crops)):
        if is_on:
            raise ConfigError(f"{flag}: a prior learns the latents of images as they are\nhint: --flip alone")
    loaded = load_model(config.model.autoencoder, config.run.runs, config.run.device)
    loaded, path = loaded.of_one_size("latents have"), loaded.located.checkpoint
    if not loaded.has_own_input:
        loaded = loaded.with_input(config.data.image_size, config.data.fit)
    for flag, given, own in (
        ("--image-size", config.data.image_size, loaded.image_size),
        ("--fit", config.data.fit, loaded.fit),
        ("--background", config.data.background, loaded.background),
    ):
        if given != own:
            raise ConfigError(f"{flag} {given}: {path} was trained with {own}")
    if name in registry.PRIORS and loaded.model.code_levels is not None:
        name = registry.PRIOR_OF_CODES
    kind = registry.load(name)
    encoder = LatentEncoder(loaded, makes_codes=issubclass(kind, Prior) and kind.takes_codes)
    filled_in = encoder.shape_options
    if wrong := [key for key, value in filled_in.items() if str(config.model.options.get(key, value)) != str(value)]:
        raise ConfigError(f"--option {wrong[0]}={config.model.options[wrong[0]]}: {path} has {filled_in[wrong[0]]}")
    if config.data.labels == "none" and config.model.options.get("classes"):
        raise ConfigError("--option classes: they are the folders of the images\nhint: --labels folders")
    channels, side, _ = encoder.shape
    defaults = {"channels": FlowOptions.channels, "patch": default_patch(side), "whitening": "component"}
    defaults |= config.model.defaults
    asked, kept = config.model.options.get("channels"), min(defaults["channels"], channels)
    base = default_base(asked if isinstance(asked, int) else kept, side)
    defaults = {"base": base, **defaults, "channels": kept, **filled_in}
    return name, registry.resolve_options(name, config.model.options, defaults), encoder


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
    """Return sets of whitened latents in place of images.

    The whitening of a prior that has none is fitted to training images first, then what it fits to examples. With
    `flip`, the latents of mirrored images are in the training set too. Examples have the classes of their images, where
    these have `labels`. Processes divide the work.

    Raises:
        DataError: the images are a stream.
        Stopped: `should_stop` returned True.
    """
    if isinstance(train, Stream):
        raise DataError(
            f"--data {config.data.source}: a prior can't be trained on a stream\nhint: name a folder or .zip of images"
        )
    chosen = evenly_spaced(len(train), _MOST_FITTED)
    views = [(train, train.rows, mirrored) for mirrored in ((False, True) if config.data.flip else (False,))]
    views.append((val, val.rows, False))
    total = (0 if is_fitted else len(chosen)) + sum(len(rows) for _, rows, _ in views)
    done, device = 0, next(prior.parameters()).device
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
    sets: list[NDArray[Any]] = []
    for images, rows, mirrored in views:
        first, last = (len(rows) * rank // distributed.world_size for rank in (distributed.rank, distributed.rank + 1))
        mine = [torch.empty(0, *prior.noise_shape(), dtype=prior.example_dtype).numpy()]
        for latents in _encode(images, rows[first:last], mirrored, encoder, should_stop):
            mine.append(prior.whiten(latents.to(device)).cpu().numpy())
            yield Progress("encoding", done + distributed.world_size * sum(map(len, mine)), total)
        examples = np.concatenate(distributed.all_gather(np.concatenate(mine)))
        sets.append(examples if images.labels is None else _with_labels(examples, images.labels[rows]))
        done += len(rows)
    *training, held_out = sets
    examples = np.concatenate(training)
    if not is_fitted:
        if distributed.is_main_process:
            prior.fit_examples(torch.from_numpy(examples))
        distributed.barrier()
        distributed.broadcast_tensors(prior.buffers())
    return ImageSet(examples, np.arange(len(examples))), ImageSet(held_out, np.arange(len(held_out)))


def _with_labels(examples: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[Any]:
    """Return examples (N, channels, side, side) with another channel, which is the number of their class."""
    channel = np.broadcast_to(labels[:, None, None, None], (len(examples), 1, *examples.shape[2:]))
    return np.concatenate([examples, channel.astype(examples.dtype)], axis=1)


def _encode(
    images: ImageSet, rows: NDArray[np.integer], mirrored: bool, encoder: LatentEncoder, should_stop: StopRequest
) -> Iterator[Tensor]:
    """Yield the latents of some rows of `images`, batch by batch."""
    placement = encoder.loaded.placement
    at_once = encoder.loaded.device_batch_size(_BATCH)
    with closing(iterate(images.nearest, rows, at_once, placement.device, placement.channels_last)) as batches:
        for batch in batches:
            if should_stop():
                raise Stopped
            yield encoder.latents(batch.flip(-1) if mirrored else batch)
