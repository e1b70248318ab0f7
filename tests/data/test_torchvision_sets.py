import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from aecli.data.sources.registry import list_images
from tests.support.data import fail_to_list


def test_torchvision_fake_data_equals_torchvision_and_leaves_the_random_state_alone():
    from torchvision.datasets import FakeData

    images = list_images("torchvision:FakeData")
    assert len(images) == 1000
    assert [image.name for image in images[:2]] == ["000000.png", "000001.png"]
    state = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda image: np.asarray(image.load()), images[:40]))
    assert torch.equal(torch.get_rng_state(), state)
    for index in (0, 17, 39):
        np.testing.assert_array_equal(loaded[index], np.asarray(FakeData()[index][0]))


def test_torchvision_names_are_forgiving_and_fingerprints_tell_data_sets_apart(monkeypatch):
    import torchvision

    class Other(torchvision.datasets.FakeData):
        pass

    monkeypatch.setattr(torchvision.datasets, "Other", Other, raising=False)
    monkeypatch.setattr(torchvision.datasets, "__all__", (*torchvision.datasets.__all__, "Other"))
    fake, other = list_images("torchvision:fakedata"), list_images("torchvision:Other")
    assert fake[0].name == other[0].name
    assert fake[0].fingerprint != other[0].fingerprint


def test_torchvision_unknown_name_lists_close_ones():
    fail_to_list("torchvision:CIFAR11", "CIFAR10", "CIFAR100")
    fail_to_list("torchvision:", "CIFAR10", "MNIST")
    fail_to_list("torchvision:ImageFolder", "no such dataset")


def test_torchvision_split_goes_where_the_constructor_takes_it(monkeypatch, own_cache):
    import torchvision

    calls = []

    class Recorder:
        def __init__(self, root, train=True, download=False, transform=None):
            calls.append((root, train, download))

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return Image.new("L", (4, 4), index)

    class BySplit(Recorder):
        def __init__(self, root, split="train", download=False):
            calls.append((root, split, download))

    root = str(own_cache / "aecli" / "torchvision")
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Recorder)
    monkeypatch.setattr(torchvision.datasets, "STL10", BySplit)
    assert len(list_images("torchvision:CIFAR10")) == 3
    assert np.asarray(list_images("torchvision:CIFAR10:test")[2].load()).tolist() == [[2] * 4] * 4
    list_images("torchvision:STL10")
    list_images("torchvision:STL10:unlabeled")
    expected = [(root, True, True), (root, False, True), (root, "train", True), (root, "unlabeled", True)]
    if sys.platform == "linux":
        assert calls == expected
    fail_to_list("torchvision:CIFAR10:val", "no split val", "train and test")
    fail_to_list("torchvision:EMNIST", "torchvision:EMNIST:SPLIT")
    fail_to_list("torchvision:CocoCaptions", "annFile", "folder")


def test_torchvision_set_that_is_not_of_images(monkeypatch):
    import torchvision

    class Tensors:
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return torch.zeros(3, 4, 4), 1

    monkeypatch.setattr(torchvision.datasets, "MovingMNIST", Tensors)
    fail_to_list("torchvision:MovingMNIST", "not a dataset of images", "Tensor")


@pytest.mark.parametrize("name", ["CIFAR10", "MNIST", "SVHN"])
def test_torchvision_without_a_network(monkeypatch, name):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    fail_to_list(f"torchvision:{name}", "can't be downloaded", "network")
