"""A trained model on its device: images to latents, latents to images."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from aecli.configs.checks import RANDOM_CROP
from aecli.data.batches import normalise, pad_sides, quantise
from aecli.data.decoding.colour import parse_colour
from aecli.data.decoding.conversions import Decoded
from aecli.data.decoding.decode import decode, decode_fitted
from aecli.data.image_ref import ImageRef
from aecli.errors import ConfigError, ModelError
from aecli.inference.tiles import cut
from aecli.models.base import Autoencoder, Kept
from aecli.models.latent_scaling import LatentScaling
from aecli.models.receptive_field import ReceptiveField, grows_with_images, receptive_field
from aecli.progress import Listener, Notice, ignore
from aecli.runs import checkpoints
from aecli.runs.folder import Located, locate
from aecli.runtime.device import Placement, place
from aecli.runtime.out_of_memory import oom_as_device_error

MEMORY_HINT = "--precision bf16, or --device cpu"
WORKER_PIXELS = 2**18  # per batch on a CPU; fixed for any number of workers, because rounding depends on the batch
_DECODE_BATCH = 16
_WHOLE_PIXELS = 2**21  # of a picture that `--tile auto` leaves whole
_AUTO_TILE = 1024  # pixels a side, without the margin


@dataclass(frozen=True)
class LoadedModel:
    """A trained model on its device; `name` is registered.

    `image_size`, `fit` and `background` are those of its training images, or those asked for in their place;
    `has_own_input` is False for weights that don't say which they are. With fit `random-crop` images stay whole.
    `tile` is `off`, the side of the tiles that a picture is computed in, or `auto`: 1024 above 2 megapixels.
    Latents are the model's own everywhere here; `latent_scaling` makes those that leave for a diffusion model.
    """

    model: Autoencoder
    located: Located
    placement: Placement
    image_size: int
    fit: str
    name: str
    background: str = "white"
    has_own_input: bool = True
    tile: str = "off"
    latent_scaling: LatentScaling = LatentScaling()

    @cached_property
    def receptive_field(self) -> ReceptiveField:
        """How far a pixel of a reconstruction looks."""
        return receptive_field(self.model)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the checkpoint file; a prior records it to identify the weights that it was fitted to."""
        return checkpoints.fingerprint(self.located.checkpoint)

    @property
    def title(self) -> str:
        """Name of its class, for pictures and tables."""
        return type(self.model).__name__

    @property
    def kept(self) -> Kept:
        """What a latent keeps of an image of its size."""
        return self.model.kept(self.image_size)

    @property
    def takes_whole(self) -> bool:
        """Whether images keep their own sizes, because it was trained on pieces of whole pictures."""
        return self.fit == RANDOM_CROP

    def tell_scaling(self, listen: Listener) -> None:
        """Say how latents that leave are scaled, if they are."""
        if not self.latent_scaling.is_identity:
            listen(Notice(f"latents z are written as {self.latent_scaling}, as {self.located.label} says"))

    def of_one_size(self, what: str, listen: Listener = ignore) -> "LoadedModel":
        """Return the model for images of `image_size`: of whole ones the middle, because of `what`, which is told."""
        if not self.takes_whole:
            return self
        listen(Notice(f"{what} one size: --fit crop --image-size {self.image_size} instead of whole pictures"))
        return replace(self, fit="crop", tile="off")

    def with_input(self, image_size: int, fit: str) -> "LoadedModel":
        """Return the model for images of another size or fit; ConfigError where it can't have that size."""
        if image_size % self.model.size_multiple:
            raise ConfigError(
                f"--image-size {image_size}: model {self.name!r} needs a multiple of {self.model.size_multiple}"
            )
        return replace(self, image_size=image_size, fit=fit)

    def with_tile(self, tile: str) -> "LoadedModel":
        """Return the model for pictures in tiles of that side, or `auto` or `off`; ConfigError where it can't."""
        if tile.isdecimal():
            if int(tile) % self.model.size_multiple:
                raise ConfigError(f"--tile {tile}: model {self.name!r} needs a multiple of {self.model.size_multiple}")
            if not grows_with_images(self.model):
                raise ConfigError(f"--tile {tile}: model {self.name!r} has latents of one shape for images of all sizes"
                                  "\nhint: --tile off")  # fmt: skip
        return replace(self, tile=tile)

    def tile_side(self, height: int, width: int) -> int | None:
        """Return the side of the tiles that a picture is reconstructed in, without their margin; None: it stays whole.

        It depends on the sizes alone.
        """
        if self.tile == "off" or (self.tile == "auto" and height * width <= _WHOLE_PIXELS):
            return None
        if self.tile == "auto":
            multiple = self.model.size_multiple
            side = -(-_AUTO_TILE // multiple) * multiple
        else:
            side = int(self.tile)
        return side if max(height, width) > side and grows_with_images(self.model) else None

    def reconstruct(self, images: np.ndarray, hint: str = MEMORY_HINT) -> np.ndarray:
        """Return reconstructions of uint8 (N, 3, H, W) of any size: sides are padded for the model and cropped back.

        Large ones are computed tile by tile (`tile`), each with as much around it as its pixels depend on: for a model
        in which nothing looks at the whole picture, that is the whole picture's reconstruction within rounding.
        """
        height, width = images.shape[-2:]
        padded = pad_sides(images, self.model.size_multiple)
        side = self.tile_side(height, width)
        if side is None:
            return self.forward(self.batch(padded), hint=hint)[:, :, :height, :width].numpy()
        made = np.empty_like(padded)
        for tile in cut(padded.shape[-2:], side, self.receptive_field.margin, self.model.size_multiple):
            for image, target in zip(padded, made, strict=True):
                whole = self.forward(self.batch(image[None, :, *tile.read].copy()), hint=hint)[0].numpy()
                target[:, *tile.written] = whole[:, *tile.kept]
        return made[:, :, :height, :width]

    def batch(self, images: np.ndarray) -> torch.Tensor:
        """Return uint8 (N, 3, H, W) as float32 in [-1, 1] on the device, where they are converted, to transfer less."""
        return normalise(torch.from_numpy(images).to(self.placement.device))

    def forward(self, batch: torch.Tensor, exact: bool = False, hint: str = MEMORY_HINT) -> torch.Tensor:
        """Return reconstructions of float32 (N, 3, H, W) in [-1, 1]: uint8, or `exact` float32, on the CPU."""
        with torch.inference_mode(), self.placement.autocast(), oom_as_device_error(hint):
            return self._to_images(self.model(self._to_device(batch)), exact)

    def latents(self, batch: torch.Tensor, hint: str = MEMORY_HINT) -> tuple[np.ndarray, np.ndarray | None]:
        """Return latents float32 (N, …) of a batch, and log variances (N, …) where the model has a posterior."""
        with torch.inference_mode(), self.placement.autocast(), oom_as_device_error(hint):
            latents, log_variances = self.model.encode_distribution(self._to_device(batch))
        return latents.float().cpu().numpy(), None if log_variances is None else log_variances.float().cpu().numpy()

    def codes(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the codes int64 (N, codebooks, h, w) nearest to latents (N, …) of a model that has codes, on the CPU.

        Raises:
            ModelError: it has none.
        """
        with torch.inference_mode():
            found = self.model.indices(latents.to(self.placement.device))
        if found is None:
            raise ModelError(f"{self.title} has no codes")
        return found.cpu()

    def decode(self, latents: torch.Tensor, exact: bool = False) -> torch.Tensor:
        """Return images (N, 3, H, W) of latents (N, …): uint8, or `exact` float32 in [-1, 1], on the CPU.

        Whole numbers are codes (N, codebooks, h, w), which stand for latents.
        """
        with torch.inference_mode(), self.placement.autocast(), oom_as_device_error(MEMORY_HINT):
            latents = latents.to(self.placement.device)
            if not latents.is_floating_point():
                latents = self.model.latents(latents)
            return self._to_images(self.model.decode(latents), exact)

    def decode_all(self, latents: torch.Tensor, exact: bool = False) -> torch.Tensor:
        """Decode any number of latents, batch by batch."""
        batches = torch.split(latents, self.device_batch_size(_DECODE_BATCH))
        return torch.cat([self.decode(batch, exact) for batch in batches])

    def device_batch_size(self, batch_size: int) -> int:
        """Return how many images of `image_size` a worker computes together: at most `batch_size`, on a CPU fewer."""
        if self.placement.device.type != "cpu":
            return batch_size
        return min(batch_size, max(1, WORKER_PIXELS // self.image_size**2))

    def read_image(self, image: ImageRef) -> Decoded:
        """Decode an image to (S, S, 3) as the training images were, or whole to (H, W, 3); raises DecodeError."""
        background = parse_colour(self.background)
        return (
            decode(image, background)
            if self.takes_whole
            else decode_fitted(image, self.image_size, self.fit, background)
        )

    def _to_device(self, batch: torch.Tensor) -> torch.Tensor:
        return batch.to(self.placement.device).contiguous(memory_format=self.placement.memory_format)

    def _to_images(self, output: torch.Tensor, exact: bool) -> torch.Tensor:
        if not bool(output.isfinite().all()):
            raise ModelError(f"{self.located.checkpoint}: the output is not finite\nhint: try --precision fp32")
        return (output.float() if exact else quantise(output)).cpu()


def load_model(
    model: str,
    runs: Path,
    device: str = "auto",
    precision: str = "auto",
    listen: Listener = ignore,
    image_size: int | None = None,
    fit: str | None = None,
    background: str | None = None,
) -> LoadedModel:
    """Load the autoencoder that a MODEL argument names onto its device.

    `image_size`, `fit` and `background` are used in place of those that it was trained with; a size alone means `crop`
    where whole pictures would be taken. `listen` is told where size and fit differ, and what is assumed where the file
    says neither.

    Raises:
        CheckpointError, ModelError: it can't be found, read or built, or is a prior.
        ConfigError: the model can't have images of that size.
        DeviceError: the device is not available.
    """
    placement = place(device, precision)
    located = locate(model, runs, listen=listen)
    loaded, document = checkpoints.load_model(located.checkpoint, located.named, listen)
    if not isinstance(loaded, Autoencoder):
        raise ModelError(
            f"{located.checkpoint} holds a prior ({document['model']}), not an autoencoder\n"
            "hint: name the autoencoder that it was trained for: aecli sample --model vae"
        )
    has_own_input = not document.get("assumed")
    on_device = loaded.to(placement.device).to(memory_format=placement.memory_format)
    trained = LoadedModel(on_device, located, placement, int(document["image_size"]), str(document["fit"]),
                          str(document["model"]), str(document.get("background", "white")), has_own_input,
                          latent_scaling=checkpoints.latent_scaling(located.checkpoint, document))  # fmt: skip
    if fit is None and image_size is not None and trained.takes_whole:
        fit = "crop"
    asked = trained.with_input(image_size or trained.image_size, fit or trained.fit)
    asked = replace(asked, background=background or trained.background)
    for text in _input_notices(trained, image_size, fit):
        listen(Notice(text))
    return asked.with_tile("auto") if asked.takes_whole else asked


def _input_notices(trained: LoadedModel, image_size: int | None, fit: str | None) -> Iterator[str]:
    """Yield a line for each of image size and fit that is asked for otherwise than in training, or is assumed."""
    path = trained.located.checkpoint
    asked = (("--image-size", image_size, trained.image_size), ("--fit", fit, trained.fit))
    for flag, given, own in asked:
        if trained.has_own_input and given not in (None, own):
            yield f"{flag} {given}: {path} was trained with {own}"
    unknown = [f"{flag} {own}" for flag, given, own in asked if given is None]
    if unknown and not trained.has_own_input:
        yield f"{path} doesn't say for which images it was trained: assuming {' and '.join(unknown)}"
