import pytest
import torch
from torch import nn

import aecli.metrics.winograd as winograd
from aecli.metrics.winograd import WinogradConv2d, suits_winograd


@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize("size", [(1, 1), (4, 8), (15, 15), (31, 6), (18, 33)])
@pytest.mark.parametrize("elements", [1, 2**30])
def test_is_the_convolution(monkeypatch, side, size, elements):
    monkeypatch.setattr(winograd, "_MAX_ELEMENTS", elements)
    torch.manual_seed(0)
    convolution = nn.Conv2d(48, 40, side, padding=side // 2)
    values = torch.randn(3, 48, *size).relu()
    assert suits_winograd(convolution)
    with torch.no_grad():
        found = WinogradConv2d(convolution)(values)
        expected = convolution.double()(values.double())
    assert found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 7, padding=3), nn.ReLU(),
        *(nn.Conv2d(64, 64, 3, **{"padding": 1, **options})
          for options in ({"padding": 0}, {"stride": 2}, {"padding": 2, "dilation": 2}, {"groups": 2})),
    ],
)  # fmt: skip
def test_other_layers_are_left(layer):
    assert not suits_winograd(layer)
