import os
import threading
import time

import numpy as np
import pytest
from PIL import Image

from aecli.data.decoding.decode import fit, resize
from aecli.errors import DataError
from aecli.runtime.threads import ordered_map, worker_count
from tests.support.images import picture

# Resizing


@pytest.mark.parametrize("shape", [(100, 64), (37, 91), (8, 9), (64, 64), (257, 31)])
@pytest.mark.parametrize("size", [32, 64])
def test_fit_equals_torchvision(shape, size):
    from torchvision import transforms

    pixels = picture(*shape)
    image = Image.fromarray(pixels)
    np.testing.assert_array_equal(fit(pixels, size, "squash"), np.asarray(transforms.Resize((size, size))(image)))
    cropped = transforms.CenterCrop(size)(transforms.Resize(size)(image))
    np.testing.assert_array_equal(fit(pixels, size, "crop"), np.asarray(cropped))


def test_crop_of_a_thread_is_refused_before_memory_is_taken():
    with pytest.raises(DataError, match="100000x1 is too elongated"):
        fit(np.zeros((1, 100_000, 3), dtype=np.uint8), 256, "crop")
    assert fit(np.zeros((1, 100_000, 3), dtype=np.uint8), 256, "squash").shape == (256, 256, 3)


def test_resize_methods():
    pixels = picture(40, 60)
    image = Image.fromarray(pixels)
    bicubic = np.asarray(image.resize((30, 25), Image.Resampling.BICUBIC))
    bilinear = np.asarray(image.resize((30, 25), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resize(pixels, 25, 30, "bicubic"), bicubic)
    np.testing.assert_array_equal(resize(pixels, 25, 30), bilinear)
    assert not np.array_equal(bicubic, bilinear)
    np.testing.assert_array_equal(resize(pixels, 40, 60), pixels)


# Threads


def test_ordered_map_keeps_order_and_bounds_what_is_in_flight():
    lock = threading.Lock()
    begun, taken, most = 0, 0, 0

    def work(item):
        nonlocal begun, most
        with lock:
            begun += 1
            most = max(most, begun - taken)
        time.sleep(0.002 * (item % 3))
        return item * item

    results = []
    for result in ordered_map(work, range(40), workers=3, ahead=5):
        results.append(result)
        with lock:
            taken += 1
    assert results == [item * item for item in range(40)]
    assert 2 <= most <= 6  # the one just handed out, and five more


def test_ordered_map_takes_items_as_they_are_needed():
    drawn = []
    items = (drawn.append(number) or number for number in range(10**9))
    results = ordered_map(lambda number: number, items, workers=1, ahead=3)
    assert next(results) == 0
    assert len(drawn) == 4
    results.close()


def test_ordered_map_raises_in_order_and_ends_its_threads():
    def work(item):
        if item == 3:
            raise ValueError("three")
        return item

    results = []
    with pytest.raises(ValueError, match="three"):
        results.extend(ordered_map(work, range(100), workers=2))
    assert results == [0, 1, 2]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("aecli-map")]


def test_ordered_map_closed_early_cancels_what_has_not_begun():
    begun = []
    gate = threading.Event()

    def work(item):
        begun.append(item)
        if item > 0:
            gate.wait(5)
        return item

    results = ordered_map(work, range(100), workers=1, ahead=50)
    assert next(results) == 0
    gate.set()
    results.close()
    assert len(begun) < 100
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("aecli-map")]


def test_ordered_map_stops_on_interruption():
    def consume():
        for result in ordered_map(lambda item: item, range(100), workers=2):
            if result == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("aecli-map")]


def test_workers(monkeypatch):
    assert worker_count(3) == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert worker_count(None) == 16
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5, 6}, raising=False)
    assert worker_count(None) == 2
