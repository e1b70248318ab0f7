"""Principal components of patches: held to NumPy's, and through the command that fits them."""

import dataclasses

import numpy as np
import pytest
import torch

from aecli.errors import ConfigError
from aecli.models import registry
from aecli.models.base import Kept
from aecli.models.patches import PatchDecoder, PatchEncoder, fit_patches
from tests.support.photographs import photographs


def patches_of(images, side):
    """(N, 3·side², positions) by slicing, in the order channel, row, column."""
    n, _, height, width = images.shape
    cut = images.reshape(n, 3, height // side, side, width // side, side)
    return cut.transpose(0, 2, 4, 1, 3, 5).reshape(-1, 3 * side * side)


@pytest.mark.parametrize("side", [4, 8])
def test_reconstructions_are_those_of_numpy_s_principal_components(side):
    images = photographs(6, 32)
    encoder, decoder = PatchEncoder(side, 12), PatchDecoder(side, 12)
    fit_patches(encoder, decoder, images.split(2))
    patches = patches_of(images.double().numpy(), side)
    mean = patches.mean(0)
    components = np.linalg.svd(patches - mean, full_matrices=False)[2][:12]
    expected = (patches - mean) @ components.T @ components + mean
    latents = encoder(images)
    with torch.no_grad():
        made = patches_of(decoder(latents).double().numpy(), side)
    np.testing.assert_allclose(made, expected, atol=2e-5)
    np.testing.assert_allclose(latents.detach().std((0, 2, 3), correction=0), 1, atol=1e-3)
    np.testing.assert_allclose(latents.detach().mean((0, 2, 3)), 0, atol=1e-4)


def test_more_components_than_patches_stay_finite():
    images = photographs(1, 32)
    encoder, decoder = PatchEncoder(16, 100), PatchDecoder(16, 100)
    fit_patches(encoder, decoder, [images])
    with torch.no_grad():
        made = decoder(encoder(images))
    torch.testing.assert_close(made, images, rtol=0, atol=1e-3)


def test_it_needs_images():
    with pytest.raises(ValueError, match="no images"):
        fit_patches(PatchEncoder(8, 4), PatchDecoder(8, 4), [])


def test_what_is_kept():
    model = registry.build("pca", registry.resolve_options("pca", {}))
    assert str(model.kept(64)) == "1/12" == str(model.kept(128))
    assert str(Kept(160, 3 * 64**2)) == "1/77" and str(Kept(7, 64)) == "7/64"
    assert str(Kept(64, 3 * 64**2, 0.15625)) == "0.156 bits a pixel"
    wide = dataclasses.replace(model.options, latent_dim=13)
    assert str(registry.build("pca", wide).kept(64)) == "6.77 %"
    with pytest.raises(ConfigError, match="--latent-dim 200: expected at most the 192"):
        registry.resolve_options("pca", {"latent_dim": 200})
