"""The residual autoencoder begins as the PCA of patches, whatever its bottleneck."""

import pytest
import torch

from aecli.models import registry
from tests.support.photographs import photographs


def prepared(name, images, **options):
    torch.manual_seed(0)
    model = registry.build(name, registry.resolve_options(name, options))
    model.prepare(images.split(2))
    return model.eval()


@pytest.mark.parametrize("bottleneck", ["none", "kl"])
# Of 32² pixels a patch has 3,072 numbers, whose eigenvectors take ten seconds: a campaign.
@pytest.mark.parametrize("downsampling", [4, 8, 16, pytest.param(32, marks=pytest.mark.soak)])
def test_before_the_first_step_it_is_the_pca(downsampling, bottleneck):
    images = photographs(8, 64)
    shape = {"downsampling": downsampling, "latent_dim": 12}
    floor = prepared("pca", images, **shape)
    model = prepared("resnet", images, **shape, width=4, bottleneck=bottleneck)
    with torch.no_grad():
        torch.testing.assert_close(model(images), floor(images), rtol=0, atol=1e-4)
        torch.testing.assert_close(model.encode(images).latent, floor.encode(images).latent, rtol=0, atol=1e-4)


def test_while_training_reconstructions_are_not_clamped():
    model = prepared("resnet", photographs(2, 64), width=4)
    latents = 9 * torch.randn(1, 16, 8, 8)
    assert model.decode(latents).abs().max() == 1
    assert model.train().decode(latents).abs().max() > 1


def test_a_crop_of_the_picture_is_a_crop_of_the_reconstruction():
    """No norm looks beyond its position: only the borders' padding differs."""
    images = photographs(1, 256)
    model = prepared("resnet", images, width=4, depth=1)
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    with torch.no_grad():
        whole, part = model(images), model(images[:, :, 64:, 64:])
    torch.testing.assert_close(part[:, :, 64:, 64:], whole[:, :, 128:, 128:], rtol=0, atol=1e-5)
