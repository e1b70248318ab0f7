"""Losses against what they are defined by: scikit-image, the lpips package, formulas; and whose gradients they give."""

import copy

import pytest
import torch
from skimage.metrics import structural_similarity

from aecli.configs.train import ObjectiveConfig
from aecli.metrics.lpips import LPIPS
from aecli.metrics.ssim import differentiable_ssim, ssim
from aecli.models.base import Prediction
from aecli.training.discriminator import LECAM_DECAY, Discriminator
from aecli.training.objectives import CHARBONNIER_EPSILON, Objective
from tests.support.objectives import losses
from tests.support.plain_models import build


def pairs(count=2, side=64, seed=0):
    """Smooth images in [-1, 1], and noisy copies."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, side // 8, side // 8, generator=generator) * 2 - 1
    images = torch.nn.functional.interpolate(small, size=(side, side), mode="bilinear")
    return images, (images + 0.1 * torch.randn(images.shape, generator=generator)).clamp(-1, 1)


def eight_bits(images):
    return ((images + 1) * 127.5).round().to(torch.uint8)


class TestPixels:
    def test_are_squared_absolute_or_between(self):
        images, output = pairs()
        model, difference = build("ae", width=4), output.double() - images.double()
        expected = {
            "mse": difference.square().mean(),
            "l1": difference.abs().mean(),
            "charbonnier": (difference.square() + CHARBONNIER_EPSILON**2).sqrt().mean(),
        }
        for name, value in expected.items():
            found = Objective(ObjectiveConfig(pixel_loss=name), model).validation_loss(Prediction(output, images))
            assert found.total.item() == pytest.approx(value.item(), rel=1e-5)
            assert list(found.parts) == ["recon"]


class TestSSIM:
    def test_is_that_of_scikit_image_and_of_the_metric(self):
        images, output = pairs()
        one, other = eight_bits(images), eight_bits(output)
        found = differentiable_ssim(one / 127.5 - 1, other / 127.5 - 1)
        for value, a, b in zip(found, one, other, strict=True):
            expected = structural_similarity(
                a.permute(1, 2, 0).numpy(), b.permute(1, 2, 0).numpy(), gaussian_weights=True, sigma=1.5,
                use_sample_covariance=False, data_range=255, channel_axis=-1,
            )  # fmt: skip
            assert value.item() == pytest.approx(expected, abs=2e-5)
        assert found.double().numpy() == pytest.approx(ssim(one, other).numpy(), abs=2e-5)

    def test_has_the_gradient_of_its_differences(self):
        images, output = (each.double() for each in pairs(1, 16))
        assert torch.autograd.gradcheck(lambda x: differentiable_ssim(x, images), output.requires_grad_())


class TestPerceptual:
    @pytest.fixture
    def network(self):
        return LPIPS.from_net("alex")

    def test_loss_and_metric_are_one(self, network):
        images, output = (eight_bits(each) for each in pairs())
        found = network.differentiable(output / 127.5 - 1, images / 127.5 - 1)
        assert found.dtype == torch.float32
        assert found.double().numpy() == pytest.approx(network(output, images).numpy(), abs=1e-6)

    @pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
    def test_value_and_gradient_are_the_packages(self, lpips_references, net):
        networks, files = lpips_references
        images, output = pairs()
        mine, theirs = (output.clone().requires_grad_() for _ in range(2))
        found = LPIPS.from_net(net, files[net]).differentiable(mine, images)
        expected = networks[net](theirs, images).flatten()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        found.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-6 * float(theirs.grad.abs().max()))

    def test_the_gradient_is_finite_where_the_package_has_none(self, network):
        black = torch.full((1, 3, 64, 64), -1.0, requires_grad=True)  # some activations are all zero
        network.differentiable(black, torch.zeros_like(black)).sum().backward()
        assert black.grad.isfinite().all()

    def test_autocast_leaves_it_in_float32(self, network):
        images, output = pairs()
        plain = network.differentiable(output, images)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(network.differentiable(output, images), plain, rtol=0, atol=0)


def test_all_parts_are_weighted_and_named_in_order():
    model, (images, output) = build("vae", width=4, beta=0.5), pairs()
    config = ObjectiveConfig(perceptual_weight=0.1, ssim_weight=0.2, adversarial_weight=0.3)
    objective = Objective(config, model, LPIPS.from_net("alex"))
    assert objective.loss_names == ("recon", "kl", "perceptual", "ssim_loss", "adversarial", "discriminator")
    found = objective.validation_loss(Prediction(output, images, {"kl": torch.tensor(2.0)}))
    weights = {"recon": 1, "kl": 0.5, "perceptual": 0.1, "ssim_loss": 0.2}
    assert found.parts.keys() == weights.keys()
    total = sum(weight * found.parts[name].item() for name, weight in weights.items())
    assert found.total.item() == pytest.approx(total, rel=1e-6)


def test_losses_are_float32_under_autocast():
    model, images = build("vae", width=4), torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        found = losses(model, images)
    assert {each.dtype for each in (found.total, *found.parts.values())} == {torch.float32}


class TestAdversarial:
    @pytest.fixture
    def objective(self):
        torch.manual_seed(0)
        config = ObjectiveConfig(adversarial_weight=0.5, adversarial_start=10, adversarial_ramp=3)
        return Objective(config, build("ae", width=4))

    def test_begins_and_grows_in_steps(self, objective):
        assert [objective.is_adversarial(step) for step in (0, 9, 10, 11)] == [False, False, True, True]
        assert [objective.adversarial_scale(step) for step in (10, 11, 13, 14, 99)] == [0.25, 0.5, 1, 1, 1]

    def test_each_side_has_its_own_gradients_alone(self, objective):
        images, output = pairs()
        output.requires_grad_()
        critic = objective.critics["discriminator"]
        objective.model_loss(Prediction(output, images), 20).parts["adversarial"].backward()
        assert output.grad.abs().max() > 0
        assert all(each.grad is None and each.requires_grad for each in critic.parameters())
        output.grad = None
        objective.critic_loss("discriminator", output, images, 1.0).total.backward()
        assert output.grad is None
        assert all(each.grad is not None for each in critic.parameters())

    def test_the_model_gains_what_its_gradient_promises(self, objective):
        images, output = pairs()
        output.requires_grad_()
        before = objective.model_loss(Prediction(output, images), 20).parts["adversarial"]
        (gradient,) = torch.autograd.grad(before, output)
        moved = Prediction(output.detach() - 1e-2 * gradient / gradient.norm(), images)
        gained = before.item() - objective.model_loss(moved, 20).parts["adversarial"].item()
        assert gained == pytest.approx(1e-2 * gradient.norm().item(), rel=0.05)

    def test_hinge_and_lecam_by_hand(self):
        torch.manual_seed(0)
        critic, (images, output) = Discriminator(), pairs()
        critic.real_mean.fill_(0.4)
        critic.fake_mean.fill_(-0.3)
        found, means = critic.loss(output, images)
        real, fake = critic(images), critic(output)
        hinge = (real.neg().add(1).clamp(min=0).mean() + fake.add(1).clamp(min=0).mean()) / 2
        lecam = ((real + 0.3).clamp(min=0) ** 2).mean() + ((0.4 - fake).clamp(min=0) ** 2).mean()
        assert found.item() == pytest.approx((hinge + 1e-3 * lecam).item(), rel=1e-6)
        critic.update_means(means)
        assert critic.real_mean.item() == pytest.approx(0.4 * LECAM_DECAY + real.mean().item() * (1 - LECAM_DECAY))

    def test_a_batch_in_parts_gives_the_gradients_and_averages_of_the_whole(self, objective):
        images, output = pairs(4)
        parts = copy.deepcopy(objective)
        objective.critic_loss("discriminator", output, images, 1.0).total.backward()
        for chosen in (slice(0, 1), slice(1, 4)):
            weight = len(images[chosen]) / 4
            (parts.critic_loss("discriminator", output[chosen], images[chosen], weight).total * weight).backward()
        for one, other in zip(objective.critics.parameters(), parts.critics.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)
