"""The report's models: initialisation, posterior, and options that shape them."""

import pytest
import torch

from aecli.models.posterior import Posterior
from tests.support.plain_models import build


def test_initialisation_is_kaiming_normal_linear_with_zero_biases():
    model = build("vae", width=16)
    convolution, transposed = model.encoder[9], model.decoder[3]
    # Kaiming normal with gain 1: standard deviation 1/sqrt(fan in), which torch counts over the second axis.
    for layer in (convolution, transposed):
        fan_in = layer.weight.shape[1] * 16
        assert layer.weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.02)
        assert not layer.bias.any()
    assert bool((model.encoder[1].weight == 1).all()) and not model.encoder[1].bias.any()


def test_kl_of_a_known_posterior():
    mean, log_variance = torch.full((2, 3, 1, 1), 2.0), torch.full((2, 3, 1, 1), 0.5)
    # -½ (1 + 0.5 - 4 - e^0.5)
    assert Posterior(mean, log_variance).kl_divergence().item() == pytest.approx(0.5 * (2.5 + 1.6487213))


def test_latent_dim_and_width_shape_the_model():
    model = build("vae", width=4, latent_dim=10)
    assert model.latent_shape(96) == (10, 3, 3)
    assert model.encode(torch.zeros(1, 3, 96, 96)).latent.shape == (1, 10, 3, 3)
