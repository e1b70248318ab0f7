"""The page of `eval --report`, in a real browser: its list, its viewer, and access for everyone."""

import re

import numpy as np
import pytest

from tests.evaluation.conftest import NAMES
from tests.support.images import save_image
from tests.support.trained import ok


@pytest.mark.slow
class TestTheList:
    @pytest.mark.parametrize(("metric", "prediction"), [("psnr", "vae"), ("ssim", "ae"), ("lpips", "vae")])
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

    def test_the_table_has_the_numbers_of_the_terminal(self, measured, visit):
        page, _, printed = measured
        table = visit(page).page.inner_text(".scores")
        figures = re.findall(r"\d+\.\d+", printed.split("images; means")[0])
        assert len(figures) == 2 * 3 * 3 and all(figure in table for figure in figures)


@pytest.mark.slow
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
        import matplotlib

        for name, level in (("truth", 100), ("pred", 130)):
            save_image(tmp_path / name / "plain.png", np.full((32, 32, 3), level, np.uint8))
        page = tmp_path / "page.html"
        ok("eval", "--gt", tmp_path / "truth", "--pred", tmp_path / "pred", "--metrics", "psnr", "--report", page)
        view = visit(page)
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


@pytest.mark.slow
class TestAccessibility:
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_axe_finds_no_violation_of_wcag(self, measured, visit, scheme):
        from axe_playwright_python.sync_playwright import Axe

        view = visit(measured[0], color_scheme=scheme)
        for opened in (False, True):
            if opened:
                view.page.click(".card >> nth=0")
            found = Axe().run(view.page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]})
            assert found.response["passes"] and found.violations_count == 0, found.generate_report()

    def test_nothing_is_fetched(self, measured, visit):
        view = visit(measured[0])
        view.page.click(".card >> nth=0")
        assert [url for url in view.requests if not url.startswith("data:")] == [measured[0].as_uri()]

    def test_it_prints_without_its_controls(self, measured, visit):
        view = visit(measured[0])
        view.page.emulate_media(media="print")
        assert view.page.locator(".scores").is_visible() and not view.page.locator("#controls").is_visible()
        assert view.page.pdf().startswith(b"%PDF")
