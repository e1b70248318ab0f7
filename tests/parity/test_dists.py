"""DISTS against the DISTS_pytorch package, with VGG16's own weights where they are, else random ones."""

import inspect
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from DISTS_pytorch import DISTS as Package
from safetensors.torch import load_file
from skimage.data import astronaut, coffee
from torch.nn import functional

from aecli.metrics.dists import CHANNELS, DISTS
from aecli.metrics.network_weights import DISTS_HEADS
from tests.support.vectors import batch

TAPPED = (3, 8, 15, 22, 29)
POOLED = (4, 9, 16, 23)


@pytest.fixture(scope="module")
def weights(lpips_references):
    own = Path(os.environ.get("AECLI_WEIGHTS", "nowhere")) / "vgg16_features.safetensors"
    return own if own.is_file() else lpips_references[1]["vgg"]


def by_hand(a, b, weights):
    """Ding et al. 2022, equations 4 to 7, in float64, as their DISTS_pt.py computes them."""
    tensors = {name: value.double() for name, value in load_file(weights).items()}
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    hann = torch.tensor(np.hanning(5)[1:-1])
    window = torch.outer(hann, hann) / torch.outer(hann, hann).sum()

    def maps(image):
        found = [image]
        values = (image - mean.double().view(3, 1, 1)) / std.double().view(3, 1, 1)
        for layer in range(30):
            if f"features.{layer}.weight" in tensors:
                weight, bias = (tensors[f"features.{layer}.{part}"] for part in ("weight", "bias"))
                values = functional.conv2d(values, weight, bias, padding=1)
            elif layer in POOLED:
                kernel = window.repeat(values.shape[1], 1, 1, 1)
                squares = functional.conv2d(values**2, kernel, stride=2, padding=1, groups=values.shape[1])
                values = (squares + 1e-12).sqrt()
            else:
                values = values.relu()
            if layer in TAPPED:
                found.append(values)
        return found

    heads = load_file(DISTS_HEADS)
    total = heads["alpha"].sum() + heads["beta"].sum()
    alpha, beta = (torch.split(heads[name].double() / total, CHANNELS) for name in ("alpha", "beta"))
    similarity = 0.0
    for one, other, texture, structure in zip(maps(a / 255), maps(b / 255), alpha, beta, strict=True):
        mean_one, mean_other = one.mean((2, 3)), other.mean((2, 3))
        var_one, var_other = one.var((2, 3), unbiased=False), other.var((2, 3), unbiased=False)
        covariance = (one * other).mean((2, 3)) - mean_one * mean_other
        of_means = (2 * mean_one * mean_other + 1e-6) / (mean_one**2 + mean_other**2 + 1e-6)
        similarity = similarity + (texture * of_means).sum(1)
        similarity = similarity + (structure * (2 * covariance + 1e-6) / (var_one + var_other + 1e-6)).sum(1)
    return 1 - similarity


PHOTO = astronaut()[60:133, 150:232]
PAIRS = [
    (PHOTO, coffee()[:73, :82]),
    (PHOTO, PHOTO // 64 * 64),
    (np.random.default_rng(0).integers(0, 256, PHOTO.shape, dtype=np.uint8), PHOTO),
    (np.full_like(PHOTO, 255), np.full_like(PHOTO, 254)),
]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_agrees_with_the_package(weights, monkeypatch):
    network = torchvision.models.vgg16(weights=None)
    network.load_state_dict(load_file(weights), strict=False)
    monkeypatch.setattr(torchvision.models, "vgg16", lambda pretrained: network)  # the package's would be downloaded
    monkeypatch.setattr(sys, "prefix", inspect.getfile(Package).rpartition("/")[0])  # where it looks for its heads
    package = Package()
    a, b = (batch(*images) for images in zip(*PAIRS, strict=True))
    expected = package(a / 255, b / 255)
    found = DISTS(weights)(a, b)
    assert found[:3].tolist() == pytest.approx(expected[:3].tolist(), abs=1e-5)


def test_agrees_with_its_equations_in_double_precision(weights):
    a, b = (batch(*images) for images in zip(*PAIRS, strict=True))
    expected = by_hand(a.double(), b.double(), weights)
    assert DISTS(weights)(a, b).tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert 0.01 < expected[1] < expected[0]
