"""The contract of every registered model, plug-ins included."""

import dataclasses
import math

import pytest
import torch

from aecli.errors import ConfigError, ModelError
from aecli.models import registry
from aecli.models.base import Autoencoder, Prior, latent_shape
from aecli.models.flops import forward_flops
from aecli.runs import checkpoints
from tests.support.objectives import losses

AUTOENCODERS = [name for name in registry.names() if issubclass(registry.load(name), Autoencoder)]
PRIORS = [name for name in registry.names() if issubclass(registry.load(name), Prior)]
OF_CODES = registry.PRIOR_OF_CODES


def small(name, seed=0):
    """The narrowest model that its options allow, with weights from that seed."""
    fields = {field.name for field in dataclasses.fields(registry.load(name).Options)}
    narrow = {"width": 4, "channels": 4, "latent_channels": 6, "side": 2}
    torch.manual_seed(seed)
    latent_diffusion = {"block_out_channels": (8, 16), "norm_num_groups": 4, "codebook_size": 16}
    given = (narrow if name in [*PRIORS, OF_CODES] else {"width": 4, **latent_diffusion}).items()
    return registry.build(name, registry.resolve_options(name, {key: value for key, value in given if key in fields}))


def random(shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def examples(model, count=3, sides=2):
    made = random((count, *model.example_shape(sides * model.size_multiple)))
    return made if model.example_dtype.is_floating_point else (9 * made.abs()).to(model.example_dtype)


@pytest.mark.parametrize("name", [*registry.names(), OF_CODES])
class TestModel:
    def test_initialisation_depends_on_the_seed_alone(self, name):
        first, again, other = (small(name, seed).state_dict() for seed in (1, 1, 2))
        assert all(torch.equal(again[key], value) for key, value in first.items())
        assert any(not torch.equal(other[key], value) for key, value in first.items())

    def test_options_are_refused_by_name(self, name):
        with pytest.raises(ConfigError, match="--option no_such_option"):
            registry.resolve_options(name, {"no_such_option": 1})

    def test_losses_are_scalars_that_train_every_parameter(self, name):
        model = small(name).train()
        found = losses(model, examples(model))
        assert found.total.shape == () and all(part.shape == () for part in found.parts.values())
        if model.closed_form:
            assert not any(each.requires_grad for each in model.parameters())
            return
        found.total.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)

    def test_evaluation_draws_nothing(self, name):
        model = small(name).eval()
        batch, state = examples(model), torch.get_rng_state()
        with torch.no_grad():
            assert torch.equal(model(batch), model(batch))
            assert losses(model, batch).total == losses(model, batch).total
            if name in AUTOENCODERS:
                assert torch.equal(model.predict(batch).output, model(batch))
        assert torch.equal(torch.get_rng_state(), state)

    def test_noise_is_one_row_an_example_and_decides_the_loss(self, name):
        model = small(name).train()
        batch = examples(model)
        torch.manual_seed(3)
        noise = model.draw_noise(len(batch), 2 * model.size_multiple)
        if noise is None:
            return
        assert len(noise) == len(batch) and not torch.equal(noise[0], noise[1])
        torch.manual_seed(3)
        assert torch.equal(model.draw_noise(len(batch), 2 * model.size_multiple), noise)
        total = losses(model, batch, noise).total
        assert losses(model, batch, noise).total == total
        if name in AUTOENCODERS:  # a flow begins with no velocity at all
            assert losses(model, batch, noise.flip(0)).total != total

    def test_terms_and_statistics_are_named_before_the_first_step(self, name):
        model = small(name).train()
        made = model.predict(examples(model))
        assert tuple(made.terms) == tuple(model.term_weights) and tuple(made.stats) == model.stat_names

    def test_flops_are_counted_on_the_meta_device_too(self, name):
        model = small(name).train()
        size = 2 * model.size_multiple
        flops = forward_flops(model, size)
        assert flops > 0 and model.training
        assert forward_flops(model.to("meta"), size) == flops

    def test_checkpoint_round_trip_on_the_user_s_word(self, name, tmp_path):
        model = small(name).eval()
        document = {"model": name, "options": dataclasses.asdict(model.options), "image_size": 64, "fit": "squash"}
        checkpoints.save(tmp_path / "model.safetensors", model.state_dict(), document)
        loaded, read = checkpoints.load_model(tmp_path / "model.safetensors", named=name)
        assert isinstance(loaded, registry.load(name)) and read["model"] == name and not loaded.training
        assert loaded.options == model.options
        state = loaded.state_dict()
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
        assert torch.equal(loaded(examples(model)), model(examples(model)))


@pytest.mark.parametrize("name", AUTOENCODERS)
class TestAutoencoder:
    @pytest.mark.parametrize("sides", [1, 2, 3])
    def test_encode_and_decode_at_every_size(self, name, sides):
        model = small(name).eval()
        size = sides * model.size_multiple
        images = random((2, 3, size, size))
        assert model.example_shape(size) == (3, size, size)
        with torch.no_grad():
            latents = model.encode(images).latent
            assert latents.shape == (2, *model.latent_shape(size)) == (2, *latent_shape(model, size))
            decoded = model.decode(latents)
            assert decoded.shape == images.shape and decoded.abs().max() <= 1
            assert torch.equal(model(images), decoded)

    def test_sides_may_differ(self, name):
        model = small(name).eval()
        images = random((1, 3, model.size_multiple, 3 * model.size_multiple))
        assert model(images).shape == images.shape

    def test_the_distribution_has_the_latents_as_its_mean(self, name):
        model = small(name).eval()
        images = examples(model)
        with torch.no_grad():
            mean, log_variance = model.encode_distribution(images)
            assert torch.equal(mean, model.encode(images).latent)
        assert log_variance is None or log_variance.shape == mean.shape

    def test_codes_are_those_of_its_bits_or_there_are_none(self, name):
        model = small(name).eval()
        with torch.no_grad():
            latents = model.encode(examples(model)).latent
            codes = model.indices(latents)
        assert (codes is None) == (model.codebook_size is None) == (model.bits_per_latent is None)
        if codes is not None:
            assert codes.dtype == torch.int64 and 0 <= codes.min() and codes.max() < model.codebook_size
            assert (codes.shape[0], *codes.shape[2:]) == (len(latents), *latents.shape[2:])
            assert codes.shape[1] * math.log2(model.codebook_size) == pytest.approx(model.bits_per_latent)
        assert (codes is None) == (model.code_levels is None)
        if codes is not None:
            assert math.prod(model.code_levels) == model.codebook_size
            torch.testing.assert_close(model.latents(codes), latents)

    def test_an_image_does_not_depend_on_the_batch_it_is_in(self, name):
        model = small(name).eval()
        images = examples(model)
        with torch.no_grad():
            torch.testing.assert_close(model(images)[:1], model(images[:1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PRIORS)
class TestPrior:
    def latents(self, model, count=64):
        return 5 + 3 * random((count, model.options.latent_channels, model.options.side, model.options.side))

    def test_whitened_latents_are_its_examples(self, name):
        model = small(name)
        for batch in self.latents(model).split(20):
            model.partial_fit(batch)
        model.fit()
        whitened = model.whiten(self.latents(model))
        assert whitened.shape == (64, *model.example_shape(256)) == (64, *latent_shape(model, 256))
        torch.testing.assert_close(model.whiten(model.unwhiten(whitened)), whitened, rtol=1e-3, atol=1e-3)
        assert float(whitened.var()) == pytest.approx(1, abs=0.1)

    def test_latents_that_do_not_vary_are_refused(self, name):
        model = small(name)
        model.partial_fit(torch.ones_like(self.latents(model)))
        with pytest.raises(ModelError, match="the same"):
            model.fit()


@pytest.mark.parametrize("name", [*PRIORS, OF_CODES])
def test_samples_are_examples_that_depend_on_the_noise_alone(name):
    model = small(name).eval()
    noise = torch.randn(3, *model.example_shape(256))
    with torch.no_grad():
        drawn = model.sample(noise, 4)
        assert drawn.shape == noise.shape and torch.equal(model.sample(noise, 4), drawn)
        torch.testing.assert_close(model.sample(noise[:1], 4), drawn[:1])
