"""The page of `eval --report`, in a real browser."""

import csv
import json
import os
import re
import shutil
from io import BytesIO

import matplotlib
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from aecli.evaluation.html_report import pictures
from tests.support.images import picture
from tests.support.ranks import run_ranks
from tests.support.trained import fails, invoke, ok

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NAMES = ["a/one", "a/two", "b/three", "four", "five", "six"]
HOSTILE = "<img src=x onerror=hacked=1>&quot;</script><script>hacked=1<"
HOSTILE_PREDICTION = "$x_{$<b>'\"{{7*7}}"


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None and "AECLI_NEEDS_BROWSER" not in os.environ:
        pytest.skip("no chromium is installed")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


def save(folder, name, pixels):
    path = folder / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def spoil(pixels, amount, seed):
    noise = np.random.default_rng(seed).normal(0, amount, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A page of six images and two predictions of them, its folder, and the numbers as the CSV has them."""
    place = tmp_path_factory.mktemp("page")
    for seed, name in enumerate(NAMES):
        pixels = picture(48, 64, seed)
        save(place / "truth", name, pixels)
        save(place / "ae", name, pixels if name == "five" else spoil(pixels, 4 + 7 * seed % 5, seed))
        save(place / "vae", name, spoil(pixels, 3 + seed, seed + 9))
    page = place / "page.html"
    result = ok("eval", "--gt", place / "truth", "--pred", place / "ae", "--pred", place / "vae", "--report", page,
                "--per-image", place / "each.csv")  # fmt: skip
    with open(place / "each.csv", encoding="utf-8") as file:
        rows = {(row["prediction"], row["name"]): row for row in csv.DictReader(file)}
    return page, rows, result.stdout


class Visit:
    """A page opened from the disk; what it asked for and complained of is kept."""

    def __init__(self, browser, path, **options):
        self.page = browser.new_page(viewport={"width": 1100, "height": 800}, **options)
        self.complaints, self.asked = [], []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def names(self):
        return self.page.locator(".card .name").all_inner_texts()

    def pixel(self, selector, across):
        """The colour that is shown in the middle row of an element, at that share of its width."""
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


class TestTheList:
    @pytest.mark.parametrize("prediction", ["ae", "vae"])
    @pytest.mark.parametrize("metric", ["psnr", "ssim", "lpips"])
    def test_worst_first_by_any_metric(self, measured, visit, metric, prediction):
        page, rows, _ = measured
        view = visit(page)
        view.page.select_option("#metric", label=metric.upper())
        view.page.select_option("#subject", label=prediction)
        sign = -1 if metric == "lpips" else 1
        expected = sorted(NAMES, key=lambda name: sign * float(rows[prediction, f"{name}.png"][metric]))
        assert view.names() == [f"{name}.png" for name in expected]
        view.page.select_option("#direction", "best")
        assert view.names() == [f"{name}.png" for name in reversed(expected)]
        view.page.select_option("#direction", "name")
        assert view.names() == sorted(f"{name}.png" for name in NAMES)

    def test_wins_and_losses_of_two_predictions(self, measured, visit):
        page, rows, _ = measured
        view = visit(page)
        ssim = {name: [float(rows[p, f"{name}.png"]["ssim"]) for p in ("ae", "vae")] for name in NAMES}
        view.page.select_option("#metric", label="SSIM")
        view.page.select_option("#subject", label="ae against vae")
        assert view.names() == [f"{n}.png" for n in sorted(NAMES, key=lambda name: ssim[name][0] - ssim[name][1])]
        view.page.select_option("#winner", label="where vae beats ae")
        wins = {f"{name}.png" for name, (ae, vae) in ssim.items() if vae > ae}
        assert set(view.names()) == wins and 0 < len(wins) < len(NAMES)
        counts = f"better on {len(NAMES) - len(wins)}, equal on 0, worse on {len(wins)}"
        assert counts in view.page.inner_text(".comparisons")

    def test_search_by_name(self, measured, visit):
        view = visit(measured[0])
        view.page.fill("#search", "A/T")
        assert view.names() == ["a/two.png"]
        assert view.page.inner_text("#status") == "1 of 6 images"
        view.page.fill("#search", "nothing of the kind")
        assert view.names() == []

    def test_the_table_says_what_the_terminal_does(self, measured, visit):
        page, _, printed = measured
        table = visit(page).page.inner_text(".scores")
        figures = re.findall(r"\d+\.\d+", printed.split("images; means")[0])
        assert len(figures) == 2 * 3 * 3 and all(figure in table for figure in figures)


class TestOneImage:
    def test_numbers_and_place(self, measured, visit):
        page, rows, _ = measured
        view = visit(page)
        view.page.click(".card:has-text('four.png')")
        assert view.page.inner_text("#viewer-name") == "four.png"
        assert "64×48 pixels" in view.page.inner_text("#viewer-place")
        row = view.page.locator("#figures tr").nth(1).inner_text()
        expected = rows["vae", "four.png"]
        assert f"{float(expected['psnr']):.2f}" in row and f"{float(expected['lpips']):.4f}" in row
        assert view.page.locator("#sides img").count() == 3

    def test_slider_and_heat_map_show_known_answers(self, tmp_path, visit):
        """A plain grey against one 30 levels brighter: at gain 4 that is 120 of 255 on matplotlib's colour map."""
        for name, level in (("truth", 100), ("pred", 130)):
            save(tmp_path / name, "plain", np.full((32, 32, 3), level, np.uint8))
        ok("eval", "--gt", tmp_path / "truth", "--pred", tmp_path / "pred", "--metrics", "psnr",
           "--report", tmp_path / "page.html")  # fmt: skip
        view = visit(tmp_path / "page.html")
        view.page.click(".card")
        for place in (25, 75):
            view.page.fill("#slider", str(place))
            shades = [view.pixel("#stage", across)[0] for across in (0.05, 0.5, 0.95)]
            assert shades == [100, 130 if place == 25 else 100, 130]
        box = view.page.locator("#stage").bounding_box()
        view.page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 20)
        view.page.mouse.down()
        view.page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 20)
        view.page.mouse.up()
        assert view.page.input_value("#slider") == "10"
        for gain in (1, 4, 8):
            view.page.fill("#gain", str(gain))
            expected = 255 * np.array(matplotlib.colormaps["inferno"](30 * gain / 255)[:3])
            assert np.abs(np.array(view.pixel("#heat", 0.5)) - expected).max() < 4
        view.page.select_option("#left", label="pred")
        assert view.pixel("#heat", 0.5) == (0, 0, 3)  # no difference from itself

    def test_keyboard_alone(self, measured, visit):
        view = visit(measured[0])
        press, text = view.page.keyboard.press, view.page.inner_text
        press("/")
        view.page.keyboard.type("a/")
        names = view.names()
        assert len(names) == 2
        press("Tab")
        press("ArrowRight")
        press("Enter")
        assert text("#viewer-name") == names[1]
        press("ArrowLeft")
        assert text("#viewer-name") == names[0]
        view.page.focus("#slider")
        press("Home")
        assert view.page.input_value("#slider") == "0" and text("#viewer-name") == names[0]
        press("Escape")
        assert not view.page.locator("#viewer").is_visible()
        assert view.page.evaluate("document.activeElement.innerText").startswith(names[0])

    def test_a_point_of_a_chart_opens_its_image(self, measured, visit):
        page, rows, _ = measured
        view = visit(page)
        view.page.select_option("#scatter", label="LPIPS ↓: ae against vae")
        chart = view.page.locator(".scatter:visible .points use")
        assert chart.count() == len(NAMES)
        chart.nth(sorted(NAMES).index("four")).dispatch_event("click")
        assert view.page.inner_text("#viewer-name") == "four.png"


class TestForEveryone:
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_no_violation_of_wcag_that_axe_finds(self, measured, visit, scheme):
        view = visit(measured[0], color_scheme=scheme)
        for opened in (False, True):
            if opened:
                view.page.click(".card >> nth=0")
            found = Axe().run(view.page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]})
            assert found.response["passes"] and found.violations_count == 0, found.generate_report()

    def test_nothing_is_fetched(self, measured, visit):
        view = visit(measured[0])
        view.page.click(".card >> nth=0")
        assert [url for url in view.asked if not url.startswith("data:")] == [measured[0].as_uri()]

    def test_it_prints_without_its_controls(self, measured, visit):
        view = visit(measured[0])
        view.page.emulate_media(media="print")
        assert view.page.locator(".scores").is_visible() and not view.page.locator("#controls").is_visible()
        assert view.page.pdf().startswith(b"%PDF")

    def test_hostile_names_are_names(self, tmp_path, visit):
        name = HOSTILE.replace("/", "")
        for folder in ("truth", "pred"):
            save(tmp_path / folder, name, picture(16, 16, 1 if folder == "truth" else 2))
        ok("eval", "--gt", tmp_path / "truth", "--pred", f"{HOSTILE_PREDICTION}={tmp_path / 'pred'}",
           "--pred", f"_{HOSTILE}=".replace("/", "").replace("=", "") + f"={tmp_path / 'pred'}",
           "--metrics", "psnr,ssim", "--report", tmp_path / "page.html")  # fmt: skip
        view = visit(tmp_path / "page.html")
        assert view.names() == [f"{name}.png"]
        view.page.click(".card")
        assert view.page.inner_text("#viewer-name") == f"{name}.png"
        assert HOSTILE_PREDICTION in view.page.inner_text("h1")
        assert view.page.evaluate("typeof hacked") == "undefined"
        assert view.page.locator("img[src=x], b").count() == 0


class TestManyImages:
    def test_pictures_in_a_folder_are_loaded_as_they_come_into_view(self, tmp_path, monkeypatch, visit, browser):
        monkeypatch.setattr(pictures, "EMBED_BYTES", 0)
        for index in range(150):
            save(tmp_path / "truth", f"{index:04}", picture(16, 16, index))
        page = tmp_path / "page.html"
        arguments = [
            "eval",
            "--gt",
            tmp_path / "truth",
            "--pred",
            tmp_path / "truth",
            "--metrics",
            "psnr",
            "--report",
            page,
        ]
        assert "keep them together" in ok(*arguments).stderr
        folder = tmp_path / "page_files"
        assert len(list(folder.iterdir())) == 2 * 150
        with Image.open(folder / "7-0.webp") as kept:
            assert np.array_equal(np.array(kept), picture(16, 16, 7))
        view = visit(page)
        assert len(view.names()) == 60
        view.page.locator(".thumbs img").first.evaluate("picture => picture.decode()")  # or it fails
        assert len([url for url in view.asked if url.endswith(".webp")]) < 150
        view.page.locator("#more").scroll_into_view_if_needed()
        expect(view.page.locator(".card")).to_have_count(120)
        view.page.keyboard.press("/")
        view.page.keyboard.press("Tab")
        view.page.keyboard.press("End")
        view.page.keyboard.press("ArrowRight")
        expect(view.page.locator(".card")).to_have_count(150)
        ok(*arguments)  # what a page left is replaced by the next one's
        assert len(list(folder.iterdir())) == 2 * 150 and not list(tmp_path.glob(".aecli*"))
        shutil.rmtree(folder)
        alone = Visit(browser, page)  # which complains, as it should
        alone.page.locator("#lost").wait_for(state="visible")
        assert "page_files" in alone.page.inner_text("#lost")
        alone.page.close()

    @pytest.mark.soak
    def test_ten_thousand(self, tmp_path, visit):
        pixels = picture(64, 64, 1)
        for index in range(10_000):
            pixels[0, 0] = index % 256, index // 256, 0
            save(tmp_path / "truth", f"{index:05}", pixels)
            save(tmp_path / "pred", f"{index:05}", spoil(pixels, 1 + index % 50, index))
        page = tmp_path / "page.html"
        ok("eval", "--gt", tmp_path / "truth", "--pred", tmp_path / "pred", "--metrics", "psnr,ssim", "--report", page)
        view = visit(page)
        for action in ("select_option('#metric', '1')", "fill('#search', '0999')"):
            took = view.page.evaluate(
                """action => {
                  const began = performance.now();
                  const [id, value] = action;
                  const element = document.querySelector(id);
                  element.value = value;
                  element.dispatchEvent(new Event(id == "#search" ? "input" : "change"));
                  return performance.now() - began;
                }""",
                list(re.findall(r"'(.*?)'", action)),
            )
            print(f"{action}: {took:.0f} ms; {len(view.names())} cards; page {page.stat().st_size:,} bytes")
        assert sorted(view.names()) == ["00999.png", *(f"0999{last}.png" for last in range(10))]


class TestWhereItIsWritten:
    def test_processes_write_the_page_of_one(self, measured, monkeypatch):
        place = measured[0].parent
        arguments = ["eval", "--gt", "truth", "--pred", "ae", "--pred", "vae", "--report", "ranks.html"]
        pages = []
        for size in (1, 2):
            statuses, _, said = run_ranks(place, arguments, size)
            assert statuses == [0] * size, said
            pages.append((place / "ranks.html").read_bytes())
        assert pages[0] == pages[1]

    def test_an_image_that_can_not_be_read_is_left_out(self, tmp_path, visit):
        for index in range(4):
            for folder in ("truth", "pred"):
                save(tmp_path / folder, str(index), picture(16, 16, index + (folder == "pred")))
        whole = (tmp_path / "pred" / "1.png").read_bytes()
        (tmp_path / "pred" / "1.png").write_bytes(whole[: len(whole) // 2])
        ok("eval", "--gt", tmp_path / "truth", "--pred", tmp_path / "pred", "--metrics", "psnr",
           "--on-mismatch", "skip", "--report", tmp_path / "page.html")  # fmt: skip
        view = visit(tmp_path / "page.html")
        assert sorted(view.names()) == ["0.png", "2.png", "3.png"]
        assert "1.png of pred" in view.page.inner_text(".unpaired")
        view.page.click(".card:has-text('2.png')")
        embedded = json.loads(view.page.inner_text("#data") or view.page.text_content("#data"))["embedded"][1][0]
        assert view.page.locator("#sides img").first.get_attribute("src") == embedded

    def test_what_is_there_stays(self, tmp_path):
        for folder in ("truth", "pred"):
            save(tmp_path / folder, "0", picture(16, 16, 0))
        page = tmp_path / "page.html"
        arguments = ["eval", "--gt", tmp_path / "truth", "--pred", tmp_path / "pred", "--metrics", "psnr"]
        (tmp_path / "page_files").mkdir()
        (tmp_path / "page_files" / "thesis.tex").write_text("mine")
        assert "holds other files" in fails(1, *arguments, "--report", page)
        (tmp_path / "page_files" / "thesis.tex").unlink()
        page.write_text("old")
        assert f"replacing {page}" in ok(*arguments, "--report", page).stderr.replace("\n", "")
        truth = tmp_path / "truth" / "0.png"
        truth.rename(tmp_path / "truth" / "0.html")
        assert "expected the name of a .html file" in invoke(*arguments, "--report", tmp_path / "x.txt").stderr
        same = invoke(*arguments, "--report", page, "--per-image", page)
        assert same.exit_code == 2 and "another file than --per-image" in same.stderr
