"""The flow: whitening, velocities and sampling."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from sklearn.covariance import OAS

from aecli.errors import ConfigError
from aecli.models.flow import timestep_embedding
from aecli.models.options import default_patch
from aecli.runs.checkpoints import load_model, save
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


def test_each_component_has_its_own_deviation_but_one_without_variance_is_not_blown_up():
    stds = torch.tensor([3.0, 1.0, 0.1, 1e-5])
    data = 2 + stds[:, None, None] * torch.randn(2000, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    model = build_flow(latent_channels=4, side=2, whitening="component")
    model.partial_fit(data)
    model.fit()
    examples = model.whiten(data)
    deviations = examples.std(dim=(0, 2, 3))
    assert deviations[:3].tolist() == pytest.approx([1, 1, 1], abs=0.01)
    assert deviations[3] < 0.01
    torch.testing.assert_close(model.unwhiten(examples), data, rtol=1e-4, atol=1e-4)


def test_a_token_is_a_square_of_positions():
    model = build_flow(latent_channels=4, side=4, patch=2, depth=1)
    assert model.pos_embed.shape == (4, 32) and model.proj_in.in_features == 16
    with torch.no_grad():
        for weights in (model.proj_out.weight, model.final_modulation.weight):
            weights.normal_()
    examples = torch.randn(1, 4, 4, 4)
    assert model(examples).shape == examples.shape
    # Blocks begin as the identity: a token's velocity depends on its own square alone.
    moved = examples.clone()
    moved[0, 2, 3, 1] += 1
    changed = (model(moved) != model(examples))[0]
    assert changed[:, 2:, :2].any() and changed[:, 2:, :2].sum() == changed.sum()


def test_tokens_are_few_by_default():
    assert [default_patch(side) for side in (1, 4, 7, 8, 12, 16, 32, 64)] == [1, 1, 1, 2, 4, 4, 4, 4]


def test_weights_of_before_there_were_patches_load_and_say_the_same(tmp_path):
    model = build_flow(latent_channels=4, side=2)
    with torch.no_grad():
        model.proj_out.weight.normal_()
    newer = ("patch", "whitening", "base", "classes")
    options = {key: value for key, value in asdict(model.options).items() if key not in newer}
    document = {"model": "prior", "options": options, "image_size": 64, "fit": "squash"}
    tensors = {**model.state_dict(), "scale": torch.tensor(2.0)}
    save(tmp_path / "old.safetensors", tensors, document)
    old, _ = load_model(tmp_path / "old.safetensors")
    mixed, time = torch.randn(5, 4, 2, 2), torch.rand(5)
    tokens = mixed.flatten(2).transpose(1, 2)  # as it was: each position a token
    made = old.proj_in(tokens) + old.pos_embed
    condition = torch.nn.functional.silu(old.time_mlp(timestep_embedding(time)))
    for block in old.blocks:
        made = block(made, condition)
    by_hand = old.proj_out(old.norm(made)).transpose(1, 2).reshape(mixed.shape)
    assert torch.equal(old(mixed, time), by_hand)


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


def gaussian_flow():
    """A flow that was fitted to `latents`, with its examples."""
    model, data = build_flow(latent_channels=4, side=2, whitening="component", base="gaussian"), latents(channels=4)
    model.partial_fit(data)
    model.fit()
    examples = model.whiten(data)
    model.fit_examples(examples)
    return model, examples


def test_the_gaussian_it_begins_with_has_the_shrunk_covariance_of_the_examples():
    model, examples = gaussian_flow()
    expected = OAS().fit(examples.flatten(1).double().numpy())
    covariance = (model.directions.T * model.variances) @ model.directions
    np.testing.assert_allclose(covariance.numpy(), expected.covariance_, atol=1e-5)
    np.testing.assert_allclose(model.centre.numpy(), expected.location_, atol=1e-5)


def test_before_the_first_step_samples_are_those_of_the_gaussian():
    # A sample is then a linear map of its noise; that matrix's square is the covariance.
    model, examples = gaussian_flow()
    expected = OAS().fit(examples.flatten(1).double().numpy())
    noise = torch.cat([torch.zeros(1, 16), torch.eye(16), torch.randn(5, 16)])
    for steps in (1, 7):  # exactly, in however few steps
        with torch.no_grad():
            drawn = model.sample(noise.view(-1, 4, 2, 2), steps).flatten(1)
        centre, matrix = drawn[0], drawn[1:17] - drawn[0]
        torch.testing.assert_close(drawn, centre + noise @ matrix, rtol=0, atol=1e-4)
        np.testing.assert_allclose(centre.numpy(), expected.location_, atol=1e-4)
        np.testing.assert_allclose((matrix.T @ matrix).numpy(), expected.covariance_, atol=1e-4)


def test_the_gaussians_velocity_is_the_best_linear_one():
    # Least squares of (examples - noise) on the mixture, at one time.
    model, _ = gaussian_flow()
    generator, time = torch.Generator().manual_seed(1), 0.3
    normal = torch.randn(200_000, 16, generator=generator)
    examples = model.centre + (normal * model.variances.sqrt()) @ model.directions
    noise = torch.randn(200_000, 16, generator=generator)
    mixed = time * examples + (1 - time) * noise
    affine = torch.cat([mixed, torch.ones(len(mixed), 1)], 1)
    expected = affine[:1000] @ torch.linalg.lstsq(affine, examples - noise).solution
    velocity = model(mixed[:1000].reshape(-1, 4, 2, 2), torch.full((1000,), time)).flatten(1)
    torch.testing.assert_close(velocity, expected, rtol=0, atol=0.1)


def test_steps_in_the_gaussians_coordinates_solve_the_whole_equation(monkeypatch):
    # Many plain Euler steps of the whole velocity go where few of the split one do.
    model, _ = gaussian_flow()
    monkeypatch.setattr(type(model), "_residual", lambda self, mixed, time, labels=None: 0.3 * torch.cos(mixed))
    noise = torch.randn(50, 4, 2, 2)
    mixed, many = noise, 4000
    for step in range(many):
        mixed = mixed + model(mixed, torch.full((50,), step / many)) / many
    torch.testing.assert_close(model.sample(noise, 400), mixed, rtol=0, atol=0.02)
    torch.testing.assert_close(model.invert(model.sample(noise, 50), 50), noise, rtol=0, atol=1e-3)


def test_sampling_integrates_a_known_velocity(monkeypatch):
    # dx/dt = x from x(0): after n of Euler's steps of 1/n, (1 + 1/n)^n times that.
    model = build_flow(latent_channels=4, side=1)
    monkeypatch.setattr(type(model), "_residual", lambda self, mixed, *_: mixed)
    start = torch.randn(3, 4, 1, 1)
    for steps in (1, 8):
        torch.testing.assert_close(model.sample(start, steps), start * (1 + 1 / steps) ** steps)


def test_inverted_samples_are_the_noise_that_they_were_made_of(monkeypatch):
    model = build_flow(latent_channels=4, side=2, patch=2)
    torch.manual_seed(0)
    with torch.no_grad():
        model.proj_out.weight.normal_(std=0.1)
        model.final_modulation.weight.normal_(std=0.1)
        noise = torch.randn(3, 4, 2, 2)
        drawn = model.sample(noise, 8)
        assert (drawn - noise).abs().max() > 0.5
        torch.testing.assert_close(model.invert(drawn, 8), noise, rtol=0, atol=1e-3)


def test_it_learns_a_distribution_of_two_clusters():
    model = build_flow(latent_channels=4, side=1)
    generator = torch.Generator().manual_seed(1)

    def draw(count):
        sign = torch.randint(2, (count, 1, 1, 1), generator=generator) * 2.0 - 1
        return sign * torch.tensor([2.0, -1.0, 0.5, 0.0])[None, :, None, None] + 0.1 * torch.randn(
            count, 4, 1, 1, generator=generator
        )

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, betas=model.betas)
    for _ in range(300):
        examples = draw(64)
        loss = losses(model, examples, model.draw_noise(64, 32)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        drawn = model.eval().sample(torch.randn(600, 4, 1, 1, generator=generator), 50)[:, :, 0, 0]
    first = drawn[:, 0]
    assert 0.4 < float((first > 0).float().mean()) < 0.6
    assert float((first.abs() - 2).abs().median()) < 0.2
    assert float((drawn[:, 1] + 0.5 * first).abs().median()) < 0.2  # the two numbers belong together


def classed(**options):
    """A flow of two classes, whose velocities differ."""
    model = build_flow(latent_channels=4, side=2, classes=("left", "right"), **options)
    with torch.no_grad():
        for weights in (model.proj_out.weight, model.final_modulation.weight, model.class_embed.weight):
            weights.normal_()
    return model


def with_label(examples, label):
    return torch.cat([examples, torch.full_like(examples[:, :1], label)], dim=1)


def test_a_class_is_known_but_for_a_tenth_of_the_examples_in_training():
    model, examples = classed(), torch.randn(2000, 4, 2, 2)
    assert with_label(examples, 1).shape[1:] == model.example_shape(64) and model.noise_shape() == (4, 2, 2)
    noise = model.draw_noise(2000, 64)
    right, left = (model.predict(with_label(examples, label), noise).output for label in (1, 0))
    same = (right == left).flatten(1).all(dim=1)
    assert 0.07 < float(same.float().mean()) < 0.13
    time = torch.sigmoid(noise[:, 0])
    mixed = torch.lerp(noise[:, 1:17].reshape(examples.shape), examples, time[:, None, None, None])
    torch.testing.assert_close(right[same], model(mixed, time)[same])
    torch.testing.assert_close(right[~same], model(mixed, time, torch.ones(2000, dtype=torch.int64))[~same])
    with torch.no_grad():  # validation leaves out none
        right, left = (model.eval().predict(with_label(examples[:50], label)).output for label in (1, 0))
    assert not (right == left).flatten(1).all(dim=1).any()


def test_guidance_without_classes_goes_on_beyond_the_gaussian():
    model = build_flow(channels=3, latent_channels=3, side=2, base="gaussian")
    torch.manual_seed(0)
    mixing = torch.randn(12, 12)
    examples = (torch.randn(5000, 12) @ mixing + 3).reshape(-1, 3, 2, 2)
    model.fit_examples(examples)
    with torch.no_grad():
        model.proj_out.weight.normal_(std=0.1)
        model.final_modulation.weight.normal_(std=0.1)
        units = torch.cat([torch.zeros(1, 12), torch.eye(12)]).reshape(-1, 3, 2, 2)
        none = model.sample(units, 7, guidance=0.0).flatten(1)  # what is linear in the noise is Gaussian
        matrix = none[1:] - none[0]
        torch.testing.assert_close(none[0], examples.flatten(1).mean(0), rtol=0, atol=0.01)
        torch.testing.assert_close(matrix.T @ matrix, examples.flatten(1).T.cov(), rtol=0.01, atol=0.05)
        noise = torch.randn(9, 3, 2, 2)
        once, twice, of_gaussian = (
            model.sample(noise, 1, guidance=guidance).flatten(1) for guidance in (1.0, 2.0, 0.0)
        )  # fmt: skip
        torch.testing.assert_close(twice - once, once - of_gaussian)
        assert (once - of_gaussian).abs().max() > 0.1


def test_guidance_goes_on_beyond_what_the_class_changes():
    model = classed().eval()
    noise, labels = torch.randn(3, 4, 2, 2), torch.tensor([0, 1, 1])
    with torch.no_grad():
        start = torch.zeros(3)
        free, known = model(noise, start), model(noise, start, labels)
        for guidance in (0.0, 1.0, 2.5):
            by_hand = noise + free + guidance * (known - free)
            drawn = model.sample(noise, 1, labels=labels, guidance=guidance)
            torch.testing.assert_close(drawn, by_hand, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.sample(noise, 3, labels=labels)[1:2],
                                   model.sample(noise[1:2], 3, labels=labels[1:2]))  # fmt: skip
        assert torch.equal(model.sample(noise, 3), model.sample(noise, 3, labels=torch.full((3,), 2)))


@pytest.mark.parametrize(
    "wrong, flag",
    [({"width": 30, "heads": 4}, "--width"), ({"channels": 0}, "--option channels"), ({"dropout": 1.0}, "dropout"),
     ({"channels": 9, "latent_channels": 8}, "--option channels"), ({"patch": 3}, "--option patch"),
     ({"whitening": "none"}, "--option whitening")],
)  # fmt: skip
def test_options_out_of_range_are_refused(wrong, flag):
    with pytest.raises(ConfigError, match=flag):
        build_flow(**wrong)
