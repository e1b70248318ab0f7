"""SSIM against scikit-image's `structural_similarity`: to 1e-10 in float64, to 1e-7 in float32."""

from functools import partial

import numpy as np
import pytest
from skimage.data import astronaut
from skimage.metrics import structural_similarity

import aecli.metrics.ssim as ssim_module
from aecli.metrics.ssim import MIN_SIDE, ssim
from tests.support.paired import ssim_by_hand
from tests.support.vectors import batch

# The exact calls that the numbers are defined by.
REFERENCES = {"gaussian": ssim_by_hand, "uniform": partial(structural_similarity, channel_axis=-1)}
WINDOWS = sorted(REFERENCES)
TOLERANCES = {"gaussian": 1e-7, "uniform": 1e-10}
PHOTO = astronaut()
RANDOM = np.random.default_rng(0)


def noisy(image, deviation):
    return np.clip(image + RANDOM.normal(0, deviation, image.shape), 0, 255).astype(np.uint8)


def flat(value, height=64, width=80):
    return np.full((height, width, 3), value, dtype=np.uint8)


def one_off(image):
    changed = image.copy()
    changed[::3, ::5] -= 1
    return changed


CASES = {
    "photograph, little noise": (PHOTO[:96, :200], noisy(PHOTO[:96, :200], 2)),
    "photograph, much noise": (PHOTO[:96, :200], noisy(PHOTO[:96, :200], 80)),
    "shifted by a pixel": (PHOTO[:128, :128], PHOTO[1:129, 1:129]),
    "negative": (PHOTO[100:180, 60:150], 255 - PHOTO[100:180, 60:150]),
    "noise and other noise": tuple(RANDOM.integers(0, 256, (2, 70, 90, 3), dtype=np.uint8)),
    "saturated": tuple(RANDOM.choice(np.array([0, 255], dtype=np.uint8), (2, 70, 90, 3))),
    # Here the variances are differences of nearly equal large numbers.
    "flat white and nearly so": (flat(255), one_off(flat(255))),
    "flat bright and flat brighter": (flat(250), flat(251)),
    "black and white": (flat(0), flat(255)),
    "higher than wide": (PHOTO[:300, 40:75], noisy(PHOTO[:300, 40:75], 20)),
    "wider than high": (PHOTO[40:75, :400], noisy(PHOTO[40:75, :400], 20)),
}


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_scikit_image(case, window):
    a, b = CASES[case]
    assert ssim(batch(a), batch(b), window).item() == pytest.approx(REFERENCES[window](a, b), abs=TOLERANCES[window])


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("case", CASES)
def test_float64_of_numpy_and_of_pytorch_as_on_a_gpu(case, window):
    tensors = [batch(each) for each in CASES[case]]
    convert = partial(ssim_module.converted, data_range=255)
    for a, b in (tensors, [each.numpy() for each in tensors]):
        (found,) = ssim_module.mean_of_map(a, b, window, convert, channels=3)
        assert found == pytest.approx(REFERENCES[window](*CASES[case]), abs=1e-10)


def columns(*values):
    """Flat columns of those values."""
    return np.repeat(np.repeat(np.array(values)[None, :, None], 192 // len(values), axis=1), 96, axis=0) * [1, 1, 1]


NOISE = np.rint(RANDOM.normal(0, 2, (96, 192, 3)))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (columns(100, 200), columns(140, 160)),
        (columns(10, 240, 60, 180), columns(60, 200, 40, 220)),
        (columns(20, 235) + NOISE, columns(20, 235) - NOISE),  # the sum is flat, the difference is not
    ],
)
def test_float64_where_the_rounding_of_float32_would_show(monkeypatch, a, b):
    a, b = (each.astype(np.uint8) for each in (a, b))
    expected = ssim_by_hand(a, b)
    assert ssim(batch(a), batch(b)).item() == pytest.approx(expected, abs=1e-10)
    monkeypatch.setattr(ssim_module, "_MAX_RISK", np.inf)
    assert ssim(batch(a), batch(b)).item() != pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("window", WINDOWS)
def test_smallest_images(window):
    side = MIN_SIDE[window]
    a, b = PHOTO[:side, :side], noisy(PHOTO[:side, :side], 20)
    assert ssim(batch(a), batch(b), window).item() == pytest.approx(REFERENCES[window](a, b), abs=TOLERANCES[window])
    with pytest.raises(ValueError, match=f"needs {side} pixels"):
        ssim(batch(a[1:]), batch(b[1:]), window)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("elements", [1, 20_000, 200_000, 2**30])
@pytest.mark.parametrize("size", [(90, 70), (11, 33), (47, 16), (129, 257)])
def test_tiles_and_batches_do_not_change_the_numbers(monkeypatch, window, elements, size):
    truths = [PHOTO[9 * i : 9 * i + size[0], i : i + size[1]] for i in range(5)]
    others = [noisy(image, 10 * i) for i, image in enumerate(truths)]
    monkeypatch.setattr(ssim_module, "_CPU_ELEMENTS", elements)
    expected = [REFERENCES[window](a, b) for a, b in zip(truths, others, strict=True)]
    assert ssim(batch(*truths), batch(*others), window).tolist() == pytest.approx(expected, abs=TOLERANCES[window])
