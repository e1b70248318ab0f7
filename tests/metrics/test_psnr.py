import math

import numpy as np
import pytest
import torch

from aecli.metrics.ms_ssim import ms_ssim
from aecli.metrics.psnr import mse, pooled_psnr, psnr


def test_known_answers():
    black, white = torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    assert psnr(black, white).tolist() == [0.0]
    assert psnr(black, black).tolist() == [math.inf]


def test_the_sum_of_a_large_image_is_exact():
    # 3 x 2400 x 2400 squares of 255 add up to 1.1e12: beyond int32, and beyond what float32 counts one by one.
    black = torch.zeros(1, 3, 2400, 2400, dtype=torch.uint8)
    white = torch.full_like(black, 255)
    white[0, 0, 0, 0] = 254
    assert mse(black, white).item() == (255**2 * (3 * 2400**2 - 1) + 254**2) / (3 * 2400**2)


def test_pooled_is_that_of_the_mean_mse():
    # Two images of MSE 0.5 and 0.1 against a peak of 1: 6.505 dB on average, 5.229 dB pooled.
    values = np.array([10 * math.log10(1 / 0.5), 10 * math.log10(1 / 0.1)])
    assert values.mean() == pytest.approx(6.505, abs=1e-3)
    assert pooled_psnr(values) == pytest.approx(5.229, abs=1e-3)
    assert pooled_psnr(np.array([20.0, math.inf])) == pytest.approx(20 + 10 * math.log10(2))
    assert pooled_psnr(np.array([math.inf])) is None


def test_unrounded_values_against_numpy():
    generator = np.random.default_rng(0)
    a = generator.integers(0, 65536, (2, 3, 20, 30))
    b = np.clip(a + generator.integers(-120, 121, a.shape), 0, 65535)
    by_hand = [10 * math.log10(65535**2 / np.mean((one - other) ** 2.0)) for one, other in zip(a, b, strict=True)]
    assert psnr(torch.from_numpy(a / 257), torch.from_numpy(b / 257)).tolist() == pytest.approx(by_hand, abs=1e-9)


def test_strips_do_not_change_the_numbers(monkeypatch):
    a, b = (torch.randint(0, 256, (2, 3, 61, 40), dtype=torch.uint8) for _ in range(2))
    whole, whole_luma = mse(a, b), mse(a, b, on_luma=True)
    monkeypatch.setattr("aecli.metrics.psnr._CPU_PIXELS", 7 * 40)
    assert torch.equal(mse(a, b), whole)
    assert mse(a, b, on_luma=True).tolist() == pytest.approx(whole_luma.tolist(), rel=1e-14)


def test_a_data_range_against_numpy():
    generator = np.random.default_rng(1)
    a, b = generator.integers(0, 4096, (2, 1, 3, 20, 30))
    by_hand = 10 * math.log10(4095**2 / np.mean((a - b) ** 2.0))
    for kind in (np.uint16, np.float32):
        deep = [torch.from_numpy(each.astype(kind)) for each in (a, b)]
        assert psnr(*deep, data_range=4095).item() == pytest.approx(by_hand, abs=1e-9)
    eight = torch.from_numpy((a // 17).astype(np.uint8))  # an 8-bit side is from 0 to 255 all the same
    mixed = 10 * math.log10(4095**2 / np.mean((a // 17 * (4095 / 255) - b) ** 2.0))
    assert psnr(eight, torch.from_numpy(b.astype(np.uint16)), data_range=4095).item() == pytest.approx(mixed, abs=1e-9)


def test_pytorchs_code_of_a_gpu_agrees_with_numpys():
    a, b = torch.randint(0, 256, (2, 2, 3, 200, 181), dtype=torch.uint8)
    for on_luma in (False, True):
        assert mse.__wrapped__(a, b, on_luma).tolist() == pytest.approx(mse(a, b, on_luma).tolist(), rel=1e-14)
    for one, other in ((a, b), (a.float(), b.float() / 2)):
        assert ms_ssim.__wrapped__(one, other).tolist() == pytest.approx(ms_ssim(one, other).tolist(), abs=1e-12)
