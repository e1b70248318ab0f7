"""Mirrored and turned images: all eight, equally often, and the same as an array and as a tensor."""

import numpy as np
import pytest
import torch

from aecli.data.batches import iterate
from aecli.data.orientations import epoch_orientations, flips, oriented, quarter_turns


@pytest.fixture
def images():
    """As packs are: channels last in memory."""
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (8, 6, 6, 3), dtype=np.uint8).transpose(0, 3, 1, 2)


def test_they_are_the_eight_symmetries_of_a_square():
    square = np.array([[[1, 2], [3, 4]]])
    found = [oriented(square, code)[0].ravel().tolist() for code in range(8)]
    assert found[:4] == [[1, 2, 3, 4], [2, 1, 4, 3], [2, 4, 1, 3], [1, 3, 2, 4]]
    assert len({tuple(each) for each in found}) == 8


def test_a_batch_of_a_tensor_is_that_of_the_array(images):
    codes = np.arange(8, dtype=np.uint8)
    order = np.array([3, 1, 7, 0, 2, 6, 5, 4])
    (batch,) = iterate(images, order, 8, "cpu", orientations=codes)
    by_hand = [np.rot90(images[i][:, :, :: -1 if i % 2 else 1], i // 2, (1, 2)) for i in order]
    np.testing.assert_array_equal(batch.numpy(), np.stack(by_hand).astype(np.float32) / 127.5 - 1)
    (other,) = iterate(torch.from_numpy(images.copy()), order, 8, "cpu", orientations=codes)
    assert torch.equal(batch, other)


def test_they_are_drawn_evenly_and_independently():
    flip, turns = flips(8000, 1, 2), quarter_turns(8000, 1, 2)
    codes = epoch_orientations(8000, 1, 2, True, True)
    np.testing.assert_array_equal(codes, flip + 2 * turns)
    np.testing.assert_array_equal(codes % 2, epoch_orientations(8000, 1, 2, True, False))
    np.testing.assert_array_equal(codes // 2 * 2, epoch_orientations(8000, 1, 2, False, True))
    counts = np.bincount(codes, minlength=8)
    assert ((counts - 1000) ** 2 / 1000).sum() < 24.3  # chi², 7 degrees of freedom: p = 0.001
    assert (codes != epoch_orientations(8000, 1, 3, True, True)).mean() == pytest.approx(7 / 8, abs=0.02)
    assert epoch_orientations(8000, 1, 2, False, False) is None
