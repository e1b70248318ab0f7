"""LPIPS against the lpips package."""

import numpy as np
import pytest
import torch
from skimage.data import astronaut, coffee

from aecli.metrics.lpips import LPIPS
from aecli.metrics.lpips_choice import MIN_SIDE
from tests.support.vectors import batch

NETS = ("alex", "vgg", "squeeze")


@pytest.mark.parametrize("net", NETS)
def test_agrees_with_the_lpips_package(lpips_references, net):
    networks, files = lpips_references
    photo = astronaut()[60:156, 150:262]
    noise = np.random.default_rng(0).integers(0, 256, (2, *photo.shape), dtype=np.uint8)
    white = np.full_like(photo, 255)
    a = batch(photo, photo, noise[0], white, white)
    b = batch(coffee()[:96, :112], photo // 8 * 8, noise[1], white - 1, np.zeros_like(photo))
    with torch.no_grad():
        expected = networks[net](a / 127.5 - 1, b / 127.5 - 1).flatten()
    assert expected.max() > 0.1
    found = LPIPS.from_net(net, files[net])(a, b)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("size", [(31, 47), (97, 131), (128, 211)])
def test_hard_images_of_many_sizes(lpips_references, size):
    height, width = size
    rng = np.random.default_rng(0)
    photo, other = astronaut()[:height, :width], coffee()[:height, :width]
    white = np.full_like(photo, 255)
    rows, columns = np.mgrid[:height, :width]
    checks = np.broadcast_to(((rows // 8 + columns // 8) % 2 * 255).astype(np.uint8)[:, :, None], photo.shape)
    edge = np.broadcast_to(np.where(columns > width // 2, 255, 0).astype(np.uint8)[:, :, None], photo.shape)
    spot = photo.copy()
    spot[height // 2, width // 2] ^= 255
    grain = white - rng.poisson(1, white.shape).astype(np.uint8)
    noise = rng.integers(0, 256, (2, *photo.shape), dtype=np.uint8)
    cases = [
        (photo, other), (photo, 255 - photo), (photo, spot), (white, white - 1), (white, grain), (0 * white, white),
        (checks, np.roll(checks, 1, axis=1)), (edge, np.roll(edge, 1, axis=1)), tuple(noise),
    ]  # fmt: skip
    a, b = (batch(*images) for images in zip(*cases, strict=True))
    with torch.no_grad():
        expected = lpips_references[0]["alex"](a / 127.5 - 1, b / 127.5 - 1).flatten()
    network = LPIPS.from_net("alex")
    found = network(a, b)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=2e-6)
    alone = [network(a[i : i + 1], b[i : i + 1]).item() for i in range(len(cases))]
    assert found.tolist() == pytest.approx(alone, abs=1e-6)


@pytest.mark.parametrize("net", NETS)
def test_smallest_side_is_the_lpips_packages(lpips_references, net):
    networks, files = lpips_references
    ours, side = LPIPS.from_net(net, files[net]), MIN_SIDE[net]
    image = batch(coffee()[:side, :40])
    with torch.no_grad():
        expected = networks[net](image / 127.5 - 1, 1 - image / 127.5).item()
        with pytest.raises(RuntimeError):
            networks[net](image[:, :, 1:].float(), image[:, :, 1:].float())
    assert ours(image, 255 - image).item() == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match=f"needs {side} pixels"):
        ours(image[:, :, 1:], image[:, :, 1:])
