import threading

import numpy as np
import pytest
import torch

from aecli.data.batches import epoch_order, iterate, normalise, quantise
from aecli.data.orientations import flips


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (10, 3, 4, 6), dtype=np.uint8)


def expected(images):
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)


def test_normalise_by_hand():
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    result = normalise(values)
    assert result.dtype == torch.float32
    assert (result.min().item(), result.max().item()) == (-1.0, 1.0)
    exact = np.arange(256).reshape(1, 1, 16, 16) / 127.5 - 1
    np.testing.assert_allclose(result.numpy(), exact, atol=1e-7)
    assert values.flatten().tolist() == list(range(256))


def test_quantise_undoes_normalise_clamps_and_rounds_halves_to_even():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(quantise(normalise(values)), values)
    halves = torch.tensor([0.5, 1.5, 2.5, 254.5]) / 127.5 - 1
    assert quantise(torch.tensor([-9.0, 9.0, -1.0, 1.0])).tolist() == [0, 255, 0, 255]
    in_order = quantise(torch.tensor([0.0]))  # 127.5
    assert in_order.tolist() == [128]
    numbers = ((halves + 1) * 127.5).numpy()
    assert quantise(halves).tolist() == np.rint(numbers).tolist()
    assert quantise(torch.tensor([0.0], dtype=torch.bfloat16)).dtype == torch.uint8


def test_quantise_leaves_its_input_alone():
    images = torch.full((1, 3, 2, 2), 0.25)
    quantise(images)
    assert torch.all(images == 0.25)


def test_epoch_order_depends_on_seed_and_epoch_alone():
    order = epoch_order(50, 7, 3)
    assert sorted(order.tolist()) == list(range(50))
    np.random.seed(1)
    torch.manual_seed(1)
    np.testing.assert_array_equal(epoch_order(50, 7, 3), order)
    others = [epoch_order(50, 7, 4), epoch_order(50, 8, 3), epoch_order(50, 3, 7), np.arange(50)]
    assert all(not np.array_equal(order, other) for other in others)
    assert sorted(epoch_order(5, 2**63 - 1, 10**6).tolist()) == list(range(5))


def test_epoch_orders_are_uniform():
    first = np.bincount([epoch_order(4, 0, epoch)[0] for epoch in range(2000)], minlength=4)
    assert first.min() > 400


def test_flips_are_fair_and_independent_of_the_order():
    flip = flips(10_000, 1, 2)
    assert flip.dtype == bool
    assert 4_800 < flip.sum() < 5_200
    np.testing.assert_array_equal(flips(10_000, 1, 2), flip)
    assert not np.array_equal(flips(10_000, 1, 3), flip)
    same_stream = np.random.default_rng(np.random.SeedSequence([1, 2])).random(10_000) < 0.5
    assert 4_800 < (same_stream == flip).sum() < 5_200


@pytest.mark.parametrize("batch_size", [1, 3, 5, 10, 64])
def test_batches_follow_the_order_and_the_last_may_be_short(images, batch_size):
    order = epoch_order(10, 0, 0)
    batches = list(iterate(images, order, batch_size, "cpu"))
    assert [len(batch) for batch in batches] == [len(order[i : i + batch_size]) for i in range(0, 10, batch_size)]
    assert all(batch.dtype == torch.float32 and batch.is_contiguous() for batch in batches)
    np.testing.assert_array_equal(torch.cat(batches).numpy(), expected(images)[order])


def test_part_of_the_images_and_some_twice(images):
    (batch,) = iterate(images, np.array([9, 2, 2]), 8, torch.device("cpu"))
    np.testing.assert_array_equal(batch.numpy(), expected(images)[[9, 2, 2]])


def test_channels_last_changes_the_layout_only(images):
    order = np.arange(10)
    plain = list(iterate(images, order, 4, "cpu"))
    layered = list(iterate(images, order, 4, "cpu", channels_last=True))
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch in layered)
    assert all(torch.equal(a, b) for a, b in zip(plain, layered, strict=True))


def test_flip_belongs_to_the_image_not_to_its_place(images):
    flip = np.zeros(10, dtype=bool)
    flip[[2, 7]] = True
    order = np.array([7, 0, 2, 1])
    (batch,) = iterate(images, order, 4, "cpu", orientations=flip)
    by_hand = [expected(images)[i][:, :, ::-1] if i in (2, 7) else expected(images)[i] for i in order]
    np.testing.assert_array_equal(batch.numpy(), np.stack(by_hand))


def test_start_goes_on_where_an_epoch_was_left(images):
    order, flip = epoch_order(10, 0, 0), flips(10, 0, 0)
    batches = list(iterate(images, order, 3, "cpu", orientations=flip))
    for start in range(5):
        rest = list(iterate(images, order, 3, "cpu", orientations=flip, start=start))
        assert len(rest) == 4 - start
        assert all(torch.equal(a, b) for a, b in zip(rest, batches[start:], strict=True))


def test_batches_are_the_callers_own(images):
    before = images.copy()
    for batch in iterate(images, np.arange(10), 5, "cpu"):
        batch.zero_()
    np.testing.assert_array_equal(images, before)


@pytest.mark.filterwarnings("error")
def test_reads_a_read_only_memory_map(images, tmp_path):
    images.tofile(tmp_path / "images.u8")
    mapped = np.memmap(tmp_path / "images.u8", dtype=np.uint8, mode="r", shape=images.shape)
    (batch,) = iterate(mapped, np.arange(10), 10, "cpu")
    np.testing.assert_array_equal(batch.numpy(), expected(images))


def gatherers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("aecli-map")]


def test_errors_of_the_thread_reach_the_caller(images):
    batches = iterate(images, np.array([0, 1, 99]), 1, "cpu")
    next(batches)
    next(batches)
    with pytest.raises(IndexError):
        next(batches)
    assert gatherers() == []


def test_the_thread_ends_with_the_generator(images):
    batches = iterate(images, np.arange(10), 1, "cpu")
    next(batches)
    assert gatherers() != []
    batches.close()
    assert gatherers() == []
    assert list(iterate(images, np.arange(0), 4, "cpu")) == []
    assert gatherers() == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_batches_equal_those_of_the_cpu(images):
    order, flip = epoch_order(10, 0, 0), flips(10, 0, 0)
    for channels_last in (False, True):
        on_cpu = list(iterate(images, order, 3, "cpu", channels_last, flip))
        on_cuda = list(iterate(images, order, 3, "cuda", channels_last, flip))
        assert all(batch.device.type == "cuda" for batch in on_cuda)
        assert all(torch.allclose(a, b.cpu(), atol=1e-6) for a, b in zip(on_cpu, on_cuda, strict=True))
        assert all(a.stride() == b.stride() for a, b in zip(on_cpu, on_cuda, strict=True))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_tensor_gives_the_batches_of_the_array_without_threads(images, layout):
    tensor = torch.from_numpy(images).contiguous(memory_format=layout)
    order, flip = epoch_order(10, 0, 0), flips(10, 0, 0)
    for kept in ({}, {"orientations": flip}, {"orientations": flip, "channels_last": True, "start": 1}, {"start": 9}):
        expected_batches = list(iterate(images, order, 4, "cpu", **kept))
        batches = iterate(tensor, order, 4, "cpu", **kept)
        found = []
        for batch in batches:
            found.append(batch)
            assert gatherers() == []
        assert all(torch.equal(a, b) for a, b in zip(found, expected_batches, strict=True))
        assert all(a.stride() == b.stride() for a, b in zip(found, expected_batches, strict=True))
    assert torch.equal(tensor, torch.from_numpy(images))


@pytest.mark.filterwarnings("error")
def test_packed_rows_lie_channels_last_in_memory_and_are_the_same(images):
    packed = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    flip = flips(10, 0, 0)
    for channels_last in (False, True):
        plain = list(iterate(images, np.arange(10), 4, "cpu", channels_last, flip))
        found = list(iterate(packed, np.arange(10), 4, "cpu", channels_last, flip))
        assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(plain, found, strict=True))
