"""Fixtures of the evaluation room: the page of `eval --report`, visited in a real browser."""

import csv
import os
import shutil
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from tests.support.images import picture, save_image
from tests.support.trained import ok

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NAMES = ["a/one", "a/two", "b/three", "four", "five", "six"]


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None and "AECLI_NEEDS_BROWSER" not in os.environ:
        pytest.skip("no chromium is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


def add_noise(pixels, amount, seed):
    noise = np.random.default_rng(seed).normal(0, amount, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A page of six images and two predictions of them, the rows of its CSV, and what was printed."""
    place = tmp_path_factory.mktemp("page")
    for seed, name in enumerate(NAMES):
        pixels = picture(48, 64, seed)
        save_image(place / f"truth/{name}.png", pixels)
        save_image(place / f"ae/{name}.png", pixels if name == "five" else add_noise(pixels, 4 + 7 * seed % 5, seed))
        save_image(place / f"vae/{name}.png", add_noise(pixels, 3 + seed, seed + 9))
    page = place / "page.html"
    result = ok("eval", "--gt", place / "truth", "--pred", place / "ae", "--pred", place / "vae", "--report", page,
                "--per-image", place / "each.csv")  # fmt: skip
    with open(place / "each.csv", encoding="utf-8") as file:
        rows = {(row["prediction"], row["name"]): row for row in csv.DictReader(file)}
    return page, rows, result.stdout


class Visit:
    """A page opened from the disk, its requests and its console messages."""

    def __init__(self, browser, path, **options):
        self.page = browser.new_page(viewport={"width": 1100, "height": 800}, **options)
        self.complaints, self.requests = [], []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def names(self):
        return self.page.locator(".card .name").all_inner_texts()

    def pixel(self, selector, across):
        """The colour in the middle row of an element, at a fraction of its width."""
        shot = Image.open(BytesIO(self.page.locator(selector).screenshot())).convert("RGB")
        return shot.getpixel((round(across * (shot.width - 1)), shot.height // 2))


@pytest.fixture
def visit(browser):
    visits = []

    def open_page(path, **options):
        visits.append(Visit(browser, path, **options))
        return visits[-1]

    yield open_page
    for each in visits:
        assert each.complaints == []
        each.page.close()
