"""The residual autoencoder begins as the PCA of patches, whatever its bottleneck."""

import pytest
import torch

from aecli.errors import ConfigError
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


@pytest.mark.parametrize("bottleneck", ["none", "kl"])
def test_latent_noise_is_of_any_level_up_to_its_own_and_added_in_training_alone(bottleneck, monkeypatch):
    images = photographs(4, 64)
    model = prepared("resnet", images, width=4, bottleneck=bottleneck, latent_noise=0.5)
    images = images.repeat(50, 1, 1, 1)
    decoded = []
    decode = type(model).decode
    monkeypatch.setattr(type(model), "decode", lambda self, latents: decoded.append(latents) or decode(self, latents))
    with torch.no_grad():
        assert torch.equal(model.predict(images[:4]).output, model(images[:4]))
        noise = model.train().draw_noise(200, 64)
        decoded.clear()
        whole = model.predict(images, noise).output
        latents = model.encode(images, noise[:, :16] if bottleneck == "kl" else None).latent
        levels = ((decoded[0] - latents).square().mean((1, 2, 3)) / latents.square().mean((1, 2, 3))).sqrt()
        assert levels.max() < 0.55 and levels.min() < 0.05  # of a thousand numbers a level is known to a few percent
        assert float(levels.mean()) == pytest.approx(0.25, abs=0.03)
        # An image's noise depends on its own numbers alone: a batch may be cut.
        torch.testing.assert_close(model.predict(images[7:9], noise[7:9]).output, whole[7:9], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["latent_noise", "scale_equivariance"])
def test_codes_are_not_regularised(name):
    with pytest.raises(ConfigError, match=name):
        registry.resolve_options("resnet", {"bottleneck": "fsq", "latent_dim": 4, name: 0.1})


@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 56)])
def test_scale_equivariance_compares_halved_images_with_what_halved_latents_become(height, width):
    """The linear path alone, by hand: a mean of four latents is decoded to a patch of the halved image."""
    images = photographs(2, 64)[:, :, :height, :width]
    model = prepared("resnet", photographs(4, 64), width=4, scale_equivariance=0.5)
    assert model.term_weights == {"equivariance": 0.5}
    with torch.no_grad():
        found = model.train().predict(images)
        latents = model.encode(images).latent
        rows, columns = latents.shape[2] // 2, latents.shape[3] // 2
        squares = []
        for row in range(rows):
            for column in range(columns):
                mean = latents[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean((2, 3), keepdim=True)
                piece = images[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
                halved = piece.unflatten(3, (8, 2)).unflatten(2, (8, 2)).mean((3, 5))
                squares.append((model.decoder.linear(mean) - halved).square().mean())
        assert float(found.terms["equivariance"]) == pytest.approx(float(torch.stack(squares).mean()), rel=1e-5)
        assert torch.equal(found.output, model.decode(latents))
        assert torch.equal(
            model.eval().predict(images).terms["equivariance"], model.predict(images).terms["equivariance"]
        )


def test_scale_equivariance_needs_latents_that_can_be_halved():
    model = prepared("resnet", photographs(4, 64), width=4, scale_equivariance=0.5)
    with pytest.raises(ConfigError, match="can't halve latents of 1x1"):
        model.predict(photographs(1, 8))


def test_a_crop_of_the_picture_is_a_crop_of_the_reconstruction():
    """No norm looks beyond its position: only the borders' padding differs."""
    images = photographs(1, 256)
    model = prepared("resnet", images, width=4, depth=1)
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    with torch.no_grad():
        whole, part = model(images), model(images[:, :, 64:, 64:])
    torch.testing.assert_close(part[:, :, 64:, 64:], whole[:, :, 128:, 128:], rtol=0, atol=1e-5)
