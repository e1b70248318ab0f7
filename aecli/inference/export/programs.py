"""Encoder and decoder as programs of torch.export, for images of any size and number where the model can have that."""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from aecli.errors import ModelError, message_of
from aecli.inference.loaded_model import LoadedModel
from aecli.models.base import Autoencoder
from aecli.models.receptive_field import grows_with_images
from aecli.progress import Listener, Notice

_POSITIONS = (2, 3)  # of the latent of the images that are traced, unlike each other
_MOST_IMAGES, _MOST_POSITIONS = 2**16, 2**12


class _Encoder(nn.Module):
    def __init__(self, model: Autoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.encode_distribution(images)[0]


class _Decoder(nn.Module):
    def __init__(self, model: Autoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents)


@dataclass(frozen=True)
class Programs:
    """`encoder`: images float32 (N, 3, H, W) in [-1, 1] to latents (N, …); `decoder`: latents to images.

    N is any number; H and W are multiples of `multiple` from twice that on, or `image_size` where that isn't None.
    """

    encoder: ExportedProgram
    decoder: ExportedProgram
    multiple: int
    image_size: int | None

    @property
    def sizes(self) -> str:
        """The sizes of its images in words."""
        if self.image_size is not None:
            return f"{self.image_size}×{self.image_size} pixels"
        return f"any sides that are multiples of {self.multiple}, from {2 * self.multiple} on"


def trace(loaded: LoadedModel, listen: Listener) -> Programs:
    """Trace a model on the CPU in float32. It stays there.

    Latents of a posterior are its means. Where the sizes can't vary, which is told, they are those of its images.

    Raises:
        ModelError: it can't be traced.
    """
    model = loaded.model.to("cpu").to(memory_format=torch.contiguous_format).float().eval().requires_grad_(False)
    multiple, side = model.size_multiple, loaded.image_size
    if grows_with_images(model) and side > multiple:
        try:
            # Of one position PyTorch assumes that there is always one.
            height, width = (Dim(name, min=2, max=_MOST_POSITIONS) for name in ("height", "width"))
            sides = tuple(multiple * positions for positions in _POSITIONS)
            return _traced(model, sides, {2: multiple * height, 3: multiple * width}, {2: height, 3: width}, None)
        except torch._dynamo.exc.UserError as error:
            listen(Notice(f"model {loaded.name!r} is exported for images of {side} pixels alone: {message_of(error)}"))
    try:
        return _traced(model, (side, side), {}, {}, side)
    except torch._dynamo.exc.UserError as error:
        raise ModelError(f"model {loaded.name!r} can't be traced by torch.export: {message_of(error)}") from error


def _traced(
    model: Autoencoder, sides: tuple[int, ...], image_dims: dict[int, Any], latent_dims: dict[int, Any],
    image_size: int | None,
) -> Programs:  # fmt: skip
    images = torch.zeros(2, 3, *sides)
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):  # PyTorch's, of what it deprecates in itself
        latents = model.encode_distribution(images)[0]
        count = Dim("count", min=1, max=_MOST_IMAGES)
        encoder = torch.export.export(_Encoder(model), (images,), dynamic_shapes=({0: count, **image_dims},))
        decoder = torch.export.export(_Decoder(model), (latents,), dynamic_shapes=({0: count, **latent_dims},))
    return Programs(encoder, decoder, model.size_multiple, image_size)
