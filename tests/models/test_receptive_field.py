"""How far a reconstructed pixel looks, against gradients."""

import pytest
import torch
from torch import nn

from aecli.models.receptive_field import _Reach, receptive_field
from tests.support.plain_models import PlainVAE, build


@pytest.mark.parametrize("name, options, side", [
    ("ae", {"width": 1}, 512), ("pca", {"downsampling": 7}, 70),
    ("resnet", {"width": 2, "depth": 1}, 256), ("resnet", {"width": 1, "depth": 0, "downsampling": 16}, 512),
])  # fmt: skip
def test_the_margin_is_as_wide_as_gradients_reach_and_not_much_wider(name, options, side):
    model = build(name, **options).double().eval().requires_grad_(False)
    for weight in model.parameters():
        weight.fill_(1 / weight[0].numel())  # no path is cancelled by another
    images = (0.1 * torch.rand(1, 3, side, side).double()).requires_grad_()
    multiple = model.size_multiple
    inside = slice(side // 2 // multiple * multiple, side // 2 // multiple * multiple + multiple)
    output = model.decoder(model.encode(images).latent)[:, :, inside, inside]  # not clamped
    (gradient,) = torch.autograd.grad(output.sum(), images)
    rows = gradient[0].abs().sum((0, 2)).nonzero()
    reach = max(inside.start - int(rows.min()), int(rows.max()) + 1 - inside.stop)
    field = receptive_field(model.float())
    assert not field.is_whole
    assert field.margin % multiple == 0
    assert reach <= field.margin <= reach + 3 * multiple


def test_a_plugin_of_patches_needs_no_more_than_its_patch():
    field = receptive_field(PlainVAE(PlainVAE.Options()))
    assert (field.margin, field.is_whole) == (32, False)


@pytest.mark.parametrize("name", ["kl", "vq"])
def test_norms_over_the_whole_picture_are_found(name):
    assert receptive_field(build(name, block_out_channels=(8, 8), mid_block_add_attention=False)).is_whole


@pytest.mark.parametrize("layer, is_whole", [
    (nn.BatchNorm2d(4).eval(), False), (nn.Softmax(dim=1), False), (nn.MaxPool2d(2), False), (nn.LayerNorm(8), False),
    (nn.InstanceNorm2d(4).eval(), True), (nn.AdaptiveAvgPool2d(1), True), (nn.LayerNorm((8, 8)), True),
    (nn.TransformerEncoderLayer(8, 2).eval(), True),
])  # fmt: skip
def test_what_mixes_all_positions(layer, is_whole):
    reach = _Reach(8, 1)
    features = torch.rand(1, 4, 8, 8)
    with torch.no_grad(), reach:
        layer(features[0] if isinstance(layer, nn.TransformerEncoderLayer) else features)
    assert reach.is_whole == is_whole
