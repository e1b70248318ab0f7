"""The floor: the best linear map of image patches, which any trained model has to beat at the same share of numbers."""

from collections.abc import Iterable

from torch import Tensor

from aecli.models.base import Autoencoder, Encoded
from aecli.models.options import PatchOptions
from aecli.models.patches import PatchDecoder, PatchEncoder, fit_patches


class PCA(Autoencoder):
    """Principal components of f×f patches, fitted in one pass; no parameter of it is trained."""

    Options = PatchOptions
    closed_form = True

    def __init__(self, options: PatchOptions) -> None:
        """Build it; `prepare` fits it."""
        super().__init__()
        self.options = options
        self.size_multiple = options.downsampling
        self.encoder = PatchEncoder(options.downsampling, options.latent_dim)
        self.decoder = PatchDecoder(options.downsampling, options.latent_dim)
        self.requires_grad_(False)

    def prepare(self, batches: Iterable[Tensor]) -> None:
        """Fit it to images (N, 3, S, S) in [-1, 1]."""
        fit_patches(self.encoder, self.decoder, batches)

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Encoded:
        """Return latents (N, latent_dim, H/f, W/f) of images (N, 3, H, W) in [-1, 1]."""
        return Encoded(self.encoder(images))

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (N, 3, H, W) in [-1, 1]."""
        images: Tensor = self.decoder(latents)
        return images.clamp(-1, 1)

    def latent_shape(self, image_size: int) -> tuple[int, ...]:
        """Return (latent_dim, side, side)."""
        side = image_size // self.size_multiple
        return (self.options.latent_dim, side, side)
