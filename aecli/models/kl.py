"""The autoencoder of Stable Diffusion (1 to 3, XL) and FLUX: diffusers' `AutoencoderKL`, by names, shapes and function.

Rombach et al., "High-resolution image synthesis with latent diffusion models", CVPR 2022.
"""

from torch import Tensor, nn

from aecli.models.ldm_layers import Decoder, Encoder
from aecli.models.options import KLOptions
from aecli.models.posterior import GaussianAutoencoder, Posterior


class KL(GaussianAutoencoder):
    """Residual blocks, attention at the coarsest resolution, and a Gaussian posterior.

    Its β is so small that the latents are no sample of N(0, I): it keeps them from growing without bound.
    """

    Options = KLOptions
    decoder_modules = ("post_quant_conv", "decoder")

    def __init__(self, options: KLOptions) -> None:
        """Build it with PyTorch's initialisation, from torch's global generator."""
        super().__init__()
        self.options = options
        self.size_multiple = options.downsampling
        channels = options.latent_channels
        self.encoder = Encoder(options, 2 * channels)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1) if options.use_quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(channels, channels, 1) if options.use_post_quant_conv else nn.Identity()
        self.decoder = Decoder(options)

    def posterior(self, images: Tensor) -> Posterior:
        """Return the posterior of images (N, 3, H, W) in [-1, 1]; its log variances are within [-30, 20]."""
        mean, log_variance = self.quant_conv(self.encoder(images)).float().chunk(2, dim=1)
        return Posterior.bounded(mean, log_variance)

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (N, 3, H, W); in `eval()` mode in [-1, 1], beyond which a loss still has a gradient."""
        images: Tensor = self.decoder(self.post_quant_conv(latents))
        return images if self.training else images.clamp(-1, 1)

    def latent_shape(self, image_size: int) -> tuple[int, ...]:
        """Return (latent_channels, side, side)."""
        side = image_size // self.size_multiple
        return (self.options.latent_channels, side, side)
