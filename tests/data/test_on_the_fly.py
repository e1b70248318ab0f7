from functools import partial

import numpy as np
import pytest
import torch

from aecli.data.batches import epoch_order, iterate
from aecli.data.image_ref import ImageRef
from aecli.data.orientations import flips
from aecli.data.packs.on_the_fly import OnTheFly
from aecli.errors import DataError
from tests.data.test_pack import broken, run, whole
from tests.support.images import encoded, picture


@pytest.fixture
def images():
    return [whole(f"{number:03d}.png", number) for number in range(12)]


def hundreds(*broken_ones):
    return [broken(f"{n:03d}.png") if n in broken_ones else whole(f"{n:03d}.png", n % 7) for n in range(200)]


@pytest.mark.parametrize("how", ["squash", "crop"])
def test_rows_are_those_of_a_pack(images, how):
    packed, rows = run(images, how=how)[0].images, OnTheFly(images, 16, how)
    assert rows.shape == packed.shape
    assert len(rows) == 12
    for index in (0, 11, -1):
        np.testing.assert_array_equal(rows[index], packed[index])
    chosen = np.array([7, 0, 7, 11])
    taken = rows[chosen]
    assert taken.dtype == np.uint8
    np.testing.assert_array_equal(taken, packed[chosen])
    assert rows[np.array([], dtype=int)].shape == (0, 3, 16, 16)
    torch.from_numpy(taken)  # takes neither negative strides nor what is not writable
    for wrong in (12, -13, np.int64(99)):
        with pytest.raises(IndexError):
            rows[wrong]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_batches_are_those_of_a_pack_whatever_the_workers(images, workers):
    packed, rows = run(images)[0].images, OnTheFly(images, 16, "squash", workers)
    order, flip = epoch_order(12, 3, 4), flips(12, 3, 4)
    assert 0 < flip.sum() < 12
    for kept in ({}, {"orientations": flip}, {"orientations": flip, "channels_last": True, "start": 1}):
        from_pack = list(iterate(packed, order, 5, "cpu", **kept))
        decoded = list(iterate(rows, order, 5, "cpu", **kept))
        assert [len(batch) for batch in decoded] == [5, 5, 2][kept.get("start", 0) :]
        assert all(torch.equal(a, b) for a, b in zip(from_pack, decoded, strict=True))
        assert all(a.stride() == b.stride() for a, b in zip(from_pack, decoded, strict=True))


def test_a_broken_image_is_replaced_by_the_next_readable_one():
    images = hundreds(40, 199)
    for order in (range(200), reversed(range(200))):
        rows = OnTheFly(images, 16, "squash", 1)
        found = {index: rows[index] for index in order}
        np.testing.assert_array_equal(found[40], found[41])
        np.testing.assert_array_equal(found[199], found[0])
        assert sorted(rows.skipped) == ["040.png", "199.png"]
        assert "not a PNG" in rows.skipped["040.png"]
    (both,) = iterate(OnTheFly(hundreds(40, 41), 16, "squash", 3), np.array([40, 41, 42]), 3, "cpu")
    assert torch.equal(both[0], both[2]) and torch.equal(both[1], both[2])


def test_more_than_one_broken_in_a_hundred_is_an_error_as_soon_as_they_are_met():
    rows = OnTheFly(hundreds(3, 50, 51), 16, "squash", 2)
    batches = iterate(rows, np.arange(200), 10, "cpu")
    with pytest.raises(DataError, match=r"3 of 200 images.*more than 1%.*003\.png: "):
        list(batches)
    with pytest.raises(DataError):
        OnTheFly([broken("a.png")], 16, "squash")[0]


def test_few_images_are_decoded_ahead():
    asked = []

    def load(number):
        asked.append(number)
        return encoded(picture(seed=number))

    images = [ImageRef(f"{number:03d}.png", "", "", partial(load, number)) for number in range(100)]
    batches = iterate(OnTheFly(images, 16, "squash", 2), np.arange(100), 4, "cpu")
    next(batches)
    batches.close()
    assert set(asked) >= {0, 1, 2, 3}
    assert max(asked) < 16
