"""Objectives on a pretended CUDA device: a tensor left on the CPU is caught without a GPU."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from aecli.configs.train import ObjectiveConfig
from aecli.metrics.lpips import LPIPS
from aecli.models.base import Prediction
from aecli.training.objectives import Objective
from tests.support.plain_models import build

EVERYTHING = {"perceptual_weight": 0.1, "ssim_weight": 0.1, "adversarial_weight": 0.1, "adversarial_start": 0}


def on_cuda(mode, value):
    return mode.from_tensor(value.detach()).to("cuda")


@pytest.mark.parametrize("pixel_loss", ["mse", "l1", "charbonnier"])
@pytest.mark.parametrize("name", ["ae", "vae"])
def test_all_losses_are_computed_where_the_model_is(name, pixel_loss):
    config = ObjectiveConfig(pixel_loss=pixel_loss, **EVERYTHING)
    model, network = build(name, width=4), LPIPS.from_net("alex")
    objective = Objective(config, model, network)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for owner in (*model.modules(), *objective.modules()):
            for key, value in owner.named_parameters(recurse=False):
                owner._parameters[key] = torch.nn.Parameter(on_cuda(mode, value), value.requires_grad)
            for key, value in owner.named_buffers(recurse=False):
                owner._buffers[key] = on_cuda(mode, value)
        images = torch.empty(2, 3, 64, 64, device="cuda")
        noise = model.draw_noise(2, 64) if name == "vae" else None
        prediction = model.predict(images, noise)
        losses = objective.model_loss(prediction, 5)
        assert losses.total.device.type == "cuda"
        assert {part.device.type for part in losses.parts.values()} == {"cuda"}
        critic = objective.critic_loss("discriminator", prediction.output, images, 0.5)
        assert critic.total.device.type == "cuda"
        with pytest.raises(RuntimeError, match="device"):
            objective.model_loss(Prediction(prediction.output, torch.empty(2, 3, 64, 64), prediction.terms), 5)
