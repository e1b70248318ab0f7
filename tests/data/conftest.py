"""Fixtures of the data room."""

import pytest

from aecli.data.sources.registry import list_images


@pytest.fixture
def images(image_folder):
    return list_images(str(image_folder("b.png", "a.png", "sub [1]\n/c.png")))


@pytest.fixture
def cache_folder(tmp_path):
    return tmp_path / "packs"
