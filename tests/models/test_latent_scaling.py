"""Scaled latents against the formulas of diffusers' pipelines."""

import json
import math

import numpy as np
import pytest
import torch

from aecli.models.latent_scaling import LatentScaling

SD3 = LatentScaling((1.5305,), (0.0609,))
BY_CHANNEL = LatentScaling((0.5, 2.0, -1.0), (0.1, -0.2, 3.0))
Z = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))


def test_they_are_those_of_the_pipelines():
    torch.testing.assert_close(SD3.apply(Z), (Z - 0.0609) * 1.5305)
    expected = torch.stack([(Z[:, 0] - 0.1) * 0.5, (Z[:, 1] + 0.2) * 2, 3 - Z[:, 2]], dim=1)
    torch.testing.assert_close(BY_CHANNEL.apply(Z), expected)
    np.testing.assert_allclose(BY_CHANNEL.apply(Z.numpy()), expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize("scaling", [LatentScaling(), SD3, BY_CHANNEL])
def test_undo_is_the_inverse_and_both_survive_json(scaling):
    assert LatentScaling.from_json(json.loads(json.dumps(scaling.to_json()))) == scaling
    for latents in (Z, Z.numpy(), Z[:, :, 0, 0]):
        found = scaling.undo(scaling.apply(latents))
        assert type(found) is type(latents) and found.dtype == latents.dtype and found.shape == latents.shape
        torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(latents), rtol=1e-5, atol=1e-6)


def test_log_variances_are_those_of_scaled_samples():
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(20_000, 3, 1, 1, generator=generator) * torch.tensor([1.0, 0.3, 2.0]).view(3, 1, 1)
    expected = BY_CHANNEL.apply(samples).var(dim=0, keepdim=True).log()
    torch.testing.assert_close(BY_CHANNEL.apply_to_log_variance(samples.var(dim=0, keepdim=True).log()), expected)


def test_only_the_identity_is_one():
    assert LatentScaling().is_identity and LatentScaling((1.0, 1.0), (0.0, 0.0)).is_identity
    assert not SD3.is_identity and not BY_CHANNEL.is_identity
    assert str(SD3) == "(z - 0.0609) x 1.5305" and str(LatentScaling((0.18215,))) == "z x 0.18215"


@pytest.mark.parametrize("document", [None, {}, {"factor": 0, "shift": 0}, {"factor": "1", "shift": 0},
                                      {"factor": 1, "shift": []}, {"factor": math.nan, "shift": 0}])  # fmt: skip
def test_anything_else_is_refused(document):
    with pytest.raises(ValueError, match="latent scaling"):
        LatentScaling.from_json(document)
