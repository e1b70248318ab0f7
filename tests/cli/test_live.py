"""What training shows on a terminal, on a screen of 80 columns, and how often it draws its curves."""

import math
import time
from io import BytesIO

import numpy as np
import pyte
import pytest
from PIL import Image

from aecli.cli.sparkline import SPARKS, sparkline
from aecli.figures.curves import ORANGE, draw_curves
from aecli.training.observers import previews
from tests.support.processes import end
from tests.support.terminal import begin_in_terminal, output_of
from tests.support.trained import ok, write_images


class TestSparkline:
    def test_known_answers(self):
        assert sparkline([1, 2, 3, 4, 5, 6, 7, 8], 8) == "▁▂▃▄▅▆▇█"
        assert sparkline([3, 1], 40) == "█▁"
        assert sparkline([2, 2, 2], 40) == "▁▁▁"
        assert sparkline([5], 40) == sparkline([], 40) == ""

    def test_over_ten_fold_it_is_a_logarithm(self):
        falling = [math.exp(-x) for x in range(8)]
        assert sparkline(falling, 8) == "█▇▆▅▄▃▂▁"
        assert sparkline([0, 100, 50], 8) == "▁█▅"  # of what is not above 0 there is none

    def test_many_epochs_are_put_together(self):
        line = sparkline([*[4.0] * 500, *[1.0] * 500], 40)
        assert line == "█" * 20 + "▁" * 20


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images", list("01234567"))


def screens(place, columns, *arguments, encoding="utf-8", **environment):
    """Run `aecli` in a terminal; the screen after each piece of output, and how many lines were scrolled away."""
    process, terminal = begin_in_terminal(place, columns, list(arguments), PYTHONIOENCODING=encoding, **environment)
    screen = pyte.HistoryScreen(columns, 24, history=10_000)
    stream, seen = pyte.ByteStream(screen), []
    for piece in output_of(terminal):
        stream.feed(piece)
        seen.append([line.rstrip() for line in screen.display])
    assert end(process) == 0, seen[-1]
    return seen, len(screen.history.top)


TRAIN = ["train", "vae", "--data", "images", "--image-size", "32", "--width", "2", "--batch-size", "2",
         "--device", "cpu", "--cache", "off", "--compile", "off"]  # fmt: skip


@pytest.mark.slow
def test_bars_and_losses_stay_where_they_are(tmp_path, images):
    seen, scrolled = screens(tmp_path, 80, *TRAIN, "--epochs", "10")
    lively = [screen for screen in seen if any(line.startswith("val loss ") for line in screen)]
    assert lively and scrolled == 0
    for screen in lively:
        lines = [line for line in screen if line]
        (line,) = [line for line in lines if line.startswith("val loss ")]
        assert set(line.split()[2]) <= set("▁▂▃▄▅▆▇█") and len(line.split()[2]) <= SPARKS
        assert len(lines) <= 5  # the run, two bars, the losses; for a moment the cursor's line
    assert all(not line.startswith("val loss") for line in seen[-1])  # at the end, the summary alone stays
    assert "finished: 10 epochs" in "\n".join(seen[-1])


@pytest.mark.soak
def test_a_resumed_run_shows_its_earlier_losses(tmp_path, images):
    screens(tmp_path, 80, *TRAIN, "--epochs", "6")
    seen, _ = screens(tmp_path, 80, *TRAIN, "--epochs", "8")
    lengths = [len(line.split()[2]) for screen in seen for line in screen if line.startswith("val loss ")]
    assert lengths and min(lengths) >= 6


@pytest.mark.soak
def test_where_it_has_no_room_it_is_left_out(tmp_path, images):
    seen, _ = screens(tmp_path, 50, *TRAIN, "--epochs", "6")
    assert not [line for screen in seen for line in screen if "val loss" in line]


@pytest.mark.soak
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_without_block_characters_losses_are_ascii(tmp_path, images, encoding):
    seen, scrolled = screens(tmp_path, 80, *TRAIN, "--epochs", "6", encoding=encoding)
    lines = [line for screen in seen for line in screen if line.startswith("val loss ")]
    assert lines and scrolled == 0
    assert {char for line in lines for char in line.split()[2]} <= set("_.-~=+*#")
    assert all(line.isascii() for screen in seen for line in screen)


@pytest.mark.soak
def test_a_dumb_terminal_has_lines_instead_of_bars(tmp_path, images):
    seen, _ = screens(tmp_path, 80, *TRAIN, "--epochs", "2", TERM="dumb")
    assert any(line.startswith("epoch 2/2") for line in seen[-1])


class TestCurves:
    def test_they_keep_up_with_long_epochs_and_cost_little_of_short_ones(self, tmp_path, images, monkeypatch):
        drawn = []
        monkeypatch.setattr(previews, "write_preview", lambda session: None)
        monkeypatch.setattr(previews, "draw_curves", lambda rows: drawn.append(len(rows)) or b"")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(previews, "CURVES_SECONDS", 3600.0)
        train = [*TRAIN, "--batch-size", "8", "--quiet"]
        ok(*train, "--epochs", "20", "--runs", "short")
        assert drawn == [1, 20]
        drawn.clear()
        monkeypatch.setattr(previews, "CURVES_SECONDS", 0.0)
        monkeypatch.setattr(previews, "CURVES_FRACTION", 1e9)
        ok(*train, "--epochs", "12", "--runs", "long")
        assert drawn == list(range(1, 13))

    def test_drawing_slowly_is_drawing_seldom(self, monkeypatch):
        monkeypatch.setattr(previews, "draw_curves", lambda rows: time.sleep(0.02) or b"")
        monkeypatch.setattr(previews, "write_bytes", lambda path, content: None)
        monkeypatch.setattr(previews, "CURVES_SECONDS", 0.0)

        class Drawn:
            class state:
                rows = [{"epoch": 1}]

            class folder:
                curves = None

        writer = previews.PreviewWriter(Drawn)
        began = time.monotonic()
        writer.write_curves()
        assert writer._next_curves - began >= 0.02 / previews.CURVES_FRACTION

    @pytest.mark.draws
    def test_the_best_epoch_is_marked_on_each_curve(self):
        def ring(best):
            """Where on the PSNR panel, a flat line, orange stands highest: as a share of the picture's right half."""
            rows = [{"epoch": e, "val_loss": 0.0 if e == best else 1.0, "val_psnr": 20.0} for e in range(1, 60)]
            pixels = np.array(Image.open(BytesIO(draw_curves(rows))).convert("RGB")).astype(int)
            panel = pixels[60:, pixels.shape[1] // 2 :]
            is_orange = np.abs(panel - [int(ORANGE[i : i + 2], 16) for i in (1, 3, 5)]).sum(axis=2) < 60
            heights = is_orange.sum(axis=0)
            return np.flatnonzero(heights == heights.max()).mean() / panel.shape[1]

        assert ring(10) < 0.4 < 0.6 < ring(50)
