"""Which prediction is marked as the best, where predictions have other identical images."""

import numpy as np
import pytest

from tests.support.images import save_image
from tests.support.paired import compare, compare_json, crop
from tests.support.trained import ok


def noisy(pixels, deviation, seed):
    noise = np.random.default_rng(seed).normal(0, deviation, pixels.shape)
    return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


@pytest.fixture
def images():
    """Twelve truths; `exact` equals 9 of them and is better on the other 3; `near` differs everywhere."""
    truth = [crop(index) for index in range(12)]
    exact = [pixels if index < 9 else noisy(pixels, 8, index) for index, pixels in enumerate(truth)]
    near = [noisy(pixels, 4 if index < 9 else 8.5, 100 + index) for index, pixels in enumerate(truth)]
    return {"gt": truth, "exact": exact, "near": near}


@pytest.fixture
def folder(tmp_path, images):
    for name, pictures in images.items():
        for index, pixels in enumerate(pictures):
            save_image(tmp_path / f"{name}/{index:02}.png", pixels)
    return tmp_path


def test_means_over_different_images_are_ranked_by_pairs(folder, images):
    found = compare_json(folder, "near", "exact", metrics=("psnr", "ssim"))
    near, exact = (result["psnr"] for result in found["results"])
    both = [(psnr(images["gt"][i], images["near"][i]), psnr(images["gt"][i], images["exact"][i])) for i in (9, 10, 11)]
    assert near["mean"] > exact["mean"]  # over 12 images, of which 9 are easy, and over the 3 hard ones
    assert (near["images"], exact["images"]) == (12, 3)
    pair = found["comparisons"][0]["psnr"]
    assert (pair["wins_a"], pair["wins_b"], pair["images"]) == (0, 12, 3)
    assert pair["mean_difference"] == pytest.approx(np.mean([a - b for a, b in both]))
    assert found["best"] == {"psnr": ["exact"], "ssim": ["exact"]}


def test_no_star_where_pairs_disagree(folder, images):
    # Better on 9 of 12, by pairs, but far worse on those where both differ from the truth.
    for index in (9, 10, 11):
        save_image(folder / f"exact/{index:02}.png", noisy(images["gt"][index], 30, index))
    assert compare_json(folder, "near", "exact", metrics=("psnr",))["best"] == {"psnr": []}


def test_all_identical_is_better_than_any_other(folder):
    assert compare_json(folder, "near", "exact", "gt", metrics=("psnr",))["best"] == {"psnr": ["gt"]}


def test_equal_predictions_are_both_best(folder):
    (folder / "copy").symlink_to(folder / "exact")
    assert compare_json(folder, "exact", "near", "copy", metrics=("psnr",))["best"] == {"psnr": ["exact", "copy"]}
    assert compare_json(folder, "exact", "copy", metrics=("psnr",))["best"] == {"psnr": ["exact", "copy"]}


def test_the_same_identical_images_leave_means_comparable(folder, images):
    for index in range(9):
        save_image(folder / f"near/{index:02}.png", images["gt"][index])
    report = compare(folder, "near", "exact", metrics=("psnr",))
    (metric,) = report.metrics
    assert report.has_comparable_means(metric) and report.best(metric) == ("exact",)


def test_one_prediction_is_not_best(folder):
    assert compare_json(folder, "near", metrics=("psnr",))["best"] == {"psnr": []}


def test_terminal_and_page_say_how_many_images_a_mean_is_over(folder):
    arguments = ["eval", "--gt", folder / "gt", "--pred", folder / "near", "--pred", folder / "exact", "--metrics",
                 "psnr", "--report", folder / "page.html"]  # fmt: skip
    printed = ok(*arguments).stdout
    stars = [line.split()[0] for line in printed.splitlines() if line.rstrip().endswith("*")]
    assert stars == ["exact"]
    assert "3 of 12" in printed and "over different images" in printed
    page = (folder / "page.html").read_text()
    assert page.count("*</strong>") == 1 and "over 3 of 12 images" in page and "over different images" in page
    printed = ok(*arguments[:-3], "psnr-y,ssim-y").stdout
    assert "exact: 9 identical, left out of the mean PSNR-Y\n" in printed
    assert page.index("*</strong>") > page.index("12 images")
