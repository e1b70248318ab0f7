import numpy as np
import pytest
import torch
from skimage.data import astronaut
from skimage.metrics import structural_similarity

from aecli.metrics.ssim import ssim
from tests.support.vectors import batch

PHOTO = astronaut()


def test_threads_do_not_change_a_bit():
    a, b = batch(*[PHOTO[:200, i : i + 150] for i in range(4)]), batch(*[PHOTO[1:201, i : i + 150] for i in range(4)])
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(ssim(a, b).tolist())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


def test_unrounded_values_against_scikit_image():
    generator = np.random.default_rng(0)
    a = PHOTO[:60, :70].astype(np.int64) * 257
    b = np.clip(a + generator.integers(-3000, 3001, a.shape), 0, 65535)
    by_hand = structural_similarity(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
                                    data_range=65535, channel_axis=-1)  # fmt: skip
    assert ssim(batch(a / 257), batch(b / 257)).item() == pytest.approx(by_hand, abs=1e-9)


def test_values_of_half_precision_are_those_they_stand_for():
    a, b = (batch(PHOTO[top : top + 60, :70]) for top in (0, 1))
    for dtype in (torch.bfloat16, torch.float16):
        halved = [each.to(dtype) for each in (a, b)]
        assert ssim(*halved).item() == pytest.approx(ssim(*(each.float() for each in halved)).item(), abs=1e-9)
