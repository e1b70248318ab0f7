"""The flow: whitening, velocities and sampling."""

import numpy as np
import pytest
import torch

from aecli.errors import ConfigError
from tests.support.flows import build_flow
from tests.support.objectives import losses


def latents(count=400, channels=6, side=2):
    """Latents in two clusters of colour, with a pattern over the places, far from standard."""
    generator = torch.Generator().manual_seed(0)
    sign = torch.randint(2, (count, 1, 1, 1), generator=generator) * 2.0 - 1
    direction = torch.linspace(1, 2, channels)[None, :, None, None]
    places = torch.tensor([[1.0, -1.0], [0.5, 2.0]])[:side, :side]
    return 5 + 3 * sign * direction * places + 0.2 * torch.randn(count, channels, side, side, generator=generator)


def test_principal_channels_are_those_of_the_covariance_over_all_positions():
    model, data = build_flow(latent_channels=6, side=2), latents()
    for batch in data.split(70):
        model.partial_fit(batch)
    model.fit()
    by_hand = data.permute(0, 2, 3, 1).reshape(-1, 6).double().numpy()
    values, vectors = np.linalg.eigh(np.cov(by_hand.T, ddof=0))
    assert model.mean.numpy() == pytest.approx(by_hand.mean(axis=0), abs=1e-4)
    for row, vector in zip(model.basis.numpy(), vectors.T[::-1], strict=False):
        assert abs(row @ vector) == pytest.approx(1, abs=1e-3)
    examples = model.whiten(data)
    assert examples.shape == (400, 4, 2, 2) == (400, *model.example_shape(64))
    lost = 1 - values[::-1][:4].sum() / values.sum()
    error = ((model.unwhiten(examples) - data) ** 2).mean() / data.var()
    assert float(error) == pytest.approx(lost, rel=0.2)
    assert float(examples.var()) == pytest.approx(1, abs=0.05)


def test_with_all_channels_nothing_is_lost():
    model, data = build_flow(latent_channels=4, side=2), latents(channels=4)
    model.partial_fit(data)
    model.fit()
    torch.testing.assert_close(model.unwhiten(model.whiten(data)), data, rtol=1e-4, atol=1e-4)


def test_the_initial_velocity_is_zero():
    model, examples = build_flow(latent_channels=4, side=2), torch.randn(64, 4, 2, 2)
    noise = model.draw_noise(64, 64)
    assert model.sample(noise[:, 1:].reshape(64, 4, 2, 2), 5).equal(noise[:, 1:].reshape(64, 4, 2, 2))
    by_hand = ((examples - noise[:, 1:].reshape(64, 4, 2, 2)) ** 2).mean()
    torch.testing.assert_close(losses(model, examples, noise).total, by_hand)


def test_sampling_integrates_a_known_velocity(monkeypatch):
    # dx/dt = x from x(0): after n of Euler's steps of 1/n, (1 + 1/n)^n times that.
    model = build_flow(latent_channels=4, side=1)
    monkeypatch.setattr(type(model), "forward", lambda self, mixed, time: mixed)
    start = torch.randn(3, 4, 1, 1)
    for steps in (1, 8):
        torch.testing.assert_close(model.sample(start, steps), start * (1 + 1 / steps) ** steps)


def test_it_learns_a_distribution_of_two_clusters():
    model = build_flow(latent_channels=4, side=1)
    generator = torch.Generator().manual_seed(1)

    def draw(count):
        sign = torch.randint(2, (count, 1, 1, 1), generator=generator) * 2.0 - 1
        return sign * torch.tensor([2.0, -1.0, 0.5, 0.0])[None, :, None, None] + 0.1 * torch.randn(
            count, 4, 1, 1, generator=generator
        )

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, betas=model.betas)
    for _ in range(400):
        examples = draw(256)
        loss = losses(model, examples, model.draw_noise(256, 32)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        drawn = model.eval().sample(torch.randn(600, 4, 1, 1, generator=generator), 50)[:, :, 0, 0]
    first = drawn[:, 0]
    assert 0.4 < float((first > 0).float().mean()) < 0.6
    assert float((first.abs() - 2).abs().median()) < 0.2
    assert float((drawn[:, 1] + 0.5 * first).abs().median()) < 0.2  # the two numbers belong together


@pytest.mark.parametrize(
    "wrong, flag",
    [({"width": 30, "heads": 4}, "--width"), ({"channels": 0}, "--option channels"), ({"dropout": 1.0}, "dropout"),
     ({"channels": 9, "latent_channels": 8}, "--option channels")],
)  # fmt: skip
def test_options_out_of_range_are_refused(wrong, flag):
    with pytest.raises(ConfigError, match=flag):
        build_flow(**wrong)
