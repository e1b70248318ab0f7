"""The files of `eval --report`: pictures beside a page, names that are hostile, processes, what is there already."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from aecli.evaluation.html_report import pictures
from tests.evaluation.conftest import Visit, add_noise
from tests.support.images import picture, save_image, truncate
from tests.support.ranks import run_ranks
from tests.support.trained import fails, ok

HOSTILE = "<img src=x onerror=hacked=1>&quot;</script><script>hacked=1<".replace("/", "")
HOSTILE_PREDICTION = "$x_{$<b>'\"{{7*7}}"


@pytest.fixture
def command(tmp_path):
    """Compare `truth` with `pred`, and write `page.html`."""
    return ["eval", "--gt", tmp_path / "truth", "--pred", tmp_path / "pred", "--metrics", "psnr",
            "--report", tmp_path / "page.html"]  # fmt: skip


@pytest.mark.slow
def test_hostile_names_are_names(tmp_path, visit):
    for seed, folder in enumerate(("truth", "pred")):
        save_image(tmp_path / folder / f"{HOSTILE}.png", picture(16, 16, seed))
    ok("eval", "--gt", tmp_path / "truth", "--pred", f"{HOSTILE_PREDICTION}={tmp_path / 'pred'}",
       "--pred", f"_{HOSTILE.replace('=', '')}={tmp_path / 'pred'}",
       "--metrics", "psnr,ssim", "--report", tmp_path / "page.html")  # fmt: skip
    view = visit(tmp_path / "page.html")
    assert view.names() == [f"{HOSTILE}.png"]
    view.page.click(".card")
    assert view.page.inner_text("#viewer-name") == f"{HOSTILE}.png"
    assert HOSTILE_PREDICTION in view.page.inner_text("h1")
    assert view.page.evaluate("typeof hacked") == "undefined"
    assert view.page.locator("img[src=x], b").count() == 0


@pytest.mark.slow
def test_pictures_in_a_folder_are_loaded_as_they_come_into_view(tmp_path, command, monkeypatch, visit, browser):
    monkeypatch.setattr(pictures, "EMBED_BYTES", 0)
    for index in range(150):
        save_image(tmp_path / f"truth/{index:04}.png", picture(16, 16, index))
    (tmp_path / "pred").symlink_to(tmp_path / "truth")
    assert "keep them together" in ok(*command).stderr
    folder = tmp_path / "page_files"
    assert len(list(folder.iterdir())) == 2 * 150
    with Image.open(folder / "7-0.webp") as kept:
        assert np.array_equal(np.array(kept), picture(16, 16, 7))
    view = visit(tmp_path / "page.html")
    assert len(view.names()) == 60
    view.page.locator(".thumbs img").first.evaluate("picture => picture.decode()")  # or it fails
    assert len([url for url in view.requests if url.endswith(".webp")]) < 150
    view.page.locator("#more").scroll_into_view_if_needed()
    expect(view.page.locator(".card")).to_have_count(120)
    for key in ("/", "Tab", "End", "ArrowRight"):
        view.page.keyboard.press(key)
    expect(view.page.locator(".card")).to_have_count(150)
    ok(*command)  # the files of the former page are replaced
    assert len(list(folder.iterdir())) == 2 * 150 and not list(tmp_path.glob(".aecli*"))
    shutil.rmtree(folder)
    alone = Visit(browser, tmp_path / "page.html")  # whose console has errors, rightly
    alone.page.locator("#lost").wait_for(state="visible")
    assert "page_files" in alone.page.inner_text("#lost")
    alone.page.close()


@pytest.mark.soak
def test_ten_thousand(tmp_path, command, visit):
    pixels = picture(64, 64, 1)
    for index in range(10_000):
        pixels[0, 0] = index % 256, index // 256, 0
        save_image(tmp_path / f"truth/{index:05}.png", pixels)
        save_image(tmp_path / f"pred/{index:05}.png", add_noise(pixels, 1 + index % 50, index))
    page = tmp_path / "page.html"
    ok(*command, "--metrics", "psnr,ssim")
    view = visit(page)
    for action in (["#metric", "1"], ["#search", "0999"]):
        milliseconds = view.page.evaluate(
            """([id, value]) => {
              const began = performance.now();
              const element = document.querySelector(id);
              element.value = value;
              element.dispatchEvent(new Event(id == "#search" ? "input" : "change"));
              return performance.now() - began;
            }""",
            action,
        )
        print(f"{action}: {milliseconds:.0f} ms; {len(view.names())} cards; page {page.stat().st_size:,} bytes")
    assert sorted(view.names()) == ["00999.png", *(f"0999{last}.png" for last in range(10))]


@pytest.mark.slow
def test_processes_write_the_page_of_one(measured):
    place, pages = measured[0].parent, []
    arguments = ["eval", "--gt", "truth", "--pred", "ae", "--pred", "vae", "--report", "ranks.html"]
    for size in (1, 2):
        statuses, _, errors = run_ranks(place, arguments, size)
        assert statuses == [0] * size, errors
        pages.append((place / "ranks.html").read_bytes())
    assert pages[0] == pages[1]


@pytest.mark.slow
def test_an_image_that_can_not_be_read_is_left_out(tmp_path, command, visit):
    for index in range(4):
        for seed, folder in enumerate(("truth", "pred")):
            save_image(tmp_path / f"{folder}/{index}.png", picture(16, 16, index + seed))
    truncate(tmp_path / "pred/1.png")
    ok(*command, "--on-mismatch", "skip")
    view = visit(tmp_path / "page.html")
    assert sorted(view.names()) == ["0.png", "2.png", "3.png"]
    assert "1.png of pred" in view.page.inner_text(".unpaired")
    view.page.click(".card:has-text('2.png')")
    embedded = json.loads(view.page.inner_text("#data") or view.page.text_content("#data"))["embedded"][1][0]
    assert view.page.locator("#sides img").first.get_attribute("src") == embedded


def test_what_is_there_stays(tmp_path, command):
    for folder in ("truth", "pred"):
        save_image(tmp_path / folder / "0.png", picture(16, 16, 0))
    page, mine = tmp_path / "page.html", tmp_path / "page_files/thesis.tex"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert "page_files" in fails(1, *command)
    mine.unlink()
    page.write_text("old")
    assert f"replacing {page}" in ok(*command).stderr.replace("\n", "")
    assert "x.txt" in fails(2, *command[:-1], tmp_path / "x.txt")
    assert "--per-image" in fails(2, *command, "--per-image", page)
