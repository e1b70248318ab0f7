"""LPIPS in NumPy against the lpips package and PyTorch."""

import numpy as np
import pytest
import torch
from skimage.data import astronaut, coffee

from aecli.errors import WeightsError
from aecli.metrics import alexnet
from aecli.metrics.alexnet import AlexNetLPIPS
from aecli.metrics.lpips import LPIPS
from aecli.metrics.network_weights import head_weights, read_safetensors
from aecli.runtime.accelerators import may_have_accelerator
from tests.support.vectors import batch


@pytest.fixture(scope="module")
def network():
    return AlexNetLPIPS()


def pairs(height, width):
    """Images uint8 (5, 3, H, W) twice: photographs, noise, and flat ones."""
    photo, white = astronaut()[:height, :width], np.full((height, width, 3), 255, dtype=np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    spot = photo.copy()
    spot[height // 2, width // 2] ^= 255
    cases = [(photo, coffee()[:height, :width]), (photo, spot), tuple(noise), (white, white - 1), (0 * white, white)]
    return (batch(*images) for images in zip(*cases, strict=True))


@pytest.mark.parametrize("size", [(31, 31), (32, 64), (97, 131), (128, 255)])
def test_agrees_with_the_lpips_package(network, lpips_references, size):
    a, b = pairs(*size)
    with torch.no_grad():
        expected = lpips_references[0]["alex"](a / 127.5 - 1, b / 127.5 - 1).flatten().tolist()
    found = network.distances(network.activations(a.numpy()), b.numpy())
    assert found.tolist() == pytest.approx(expected, abs=2e-6)
    assert network.distances(list(network.activations(b.numpy())), b.numpy()).tolist() == [0.0] * 5


def test_every_layer_is_pytorchs_in_blocks_of_any_size(network, monkeypatch):
    images, _ = pairs(200, 180)
    expected = LPIPS.from_net("alex").activations(images)
    for block in (1, 2**30):
        monkeypatch.setattr(alexnet, "_BLOCK", block)
        monkeypatch.setattr(alexnet, "_WINOGRAD_BLOCK", block)
        for found, wanted in zip(network.activations(images.numpy()), expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(found).permute(0, 3, 1, 2), wanted, rtol=0, atol=5e-4)


def test_every_tile_gives_pytorchs_convolution(network, monkeypatch):
    tensors = read_safetensors(alexnet.WEIGHTS)
    values = np.random.default_rng(0).standard_normal((2, 7, 11, 192), dtype=np.float32)
    for layer, name, channels in ((network.others[0], "3", 64), (network.others[1], "6", 192)):
        weight, bias = (tensors[f"features.{name}.{kind}"] for kind in ("weight", "bias"))
        given = torch.from_numpy(values[..., :channels]).permute(0, 3, 1, 2)
        expected = torch.nn.functional.conv2d(given.double(), weight.double(), bias.double(), padding="same").relu()
        for tile in layer.tiles:
            monkeypatch.setattr(layer, "tiles", (tile,))
            found = torch.from_numpy(layer(values[..., :channels])).permute(0, 3, 1, 2).double()
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_the_heads_are_the_lpips_packages(network):
    packaged = head_weights("alex")
    for index, head in enumerate(network.heads):
        assert head.tolist() == packaged[f"lin{index}.model.1.weight"].flatten().tolist()


def test_damaged_weights_are_refused(monkeypatch, tmp_path):
    damaged = tmp_path / "heads.safetensors"
    damaged.write_bytes(alexnet.HEADS.read_bytes()[:-1])
    monkeypatch.setattr(alexnet, "HEADS", damaged)
    with pytest.raises(WeightsError, match="is damaged .*\nhint: install aecli again"):
        AlexNetLPIPS()


def test_no_accelerator_of_pytorchs_is_missed():
    assert may_have_accelerator() or not torch.cuda.is_available()
