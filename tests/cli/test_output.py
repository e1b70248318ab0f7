"""What appears where: results on stdout, the rest on stderr, nothing that steers a terminal."""

import io
import json
import os
import re
import signal

import numpy as np
import pytest
from rich.console import Console

from aecli.cli import console, tables
from aecli.cli.formats import Cell
from tests.support.by_hand import shrunk
from tests.support.images import save_image
from tests.support.processes import end
from tests.support.terminal import begin_in_terminal, output_of
from tests.support.trained import TRAIN, VAL, invoke, ok, ok_json, png

# eval


@pytest.fixture
def truth(trained):
    """The validation images as the models see them, in `truth`."""
    for name in VAL:
        save_image(trained / f"truth/{name}.png", shrunk(name))


def test_eval_prints_the_reports_table_and_its_json(trained, truth):
    for model in ("vae", "ae"):
        ok("reconstruct", "--model", model, "--out", model)
    arguments = ["eval", "--gt", "truth", "--pred", "AE=ae", "--pred", "vae", "--per-image", "numbers.csv"]
    table = ok(*arguments).stdout
    document = ok_json(*arguments)
    errors = [np.square(shrunk(name).astype(float) - png(trained / f"ae/{name}.png")).mean() for name in VAL]
    psnr = float(np.mean(10 * np.log10(255**2 / np.array(errors))))
    assert document["n"] == 3
    assert [result["name"] for result in document["results"]] == ["AE", "vae"]
    assert document["results"][0]["psnr"]["mean"] == pytest.approx(psnr, abs=1e-9)
    assert f"{psnr:.2f}" in table and "LPIPS" in table
    assert {"psnr", "ssim", "lpips"} <= set(document["definitions"])
    assert (trained / "numbers.csv").read_text().splitlines()[0] == "name,prediction,psnr,ssim,lpips"


def test_validation_psnr_is_that_of_eval_on_the_reconstructions(trained, truth):
    """The same images through the same functions: in memory while training, on disk afterwards."""
    ok("reconstruct", "--model", "vae", "--out", "out")
    document = ok_json("eval", "--gt", "truth", "--pred", "out", "--metrics", "psnr,ssim")
    best = ok_json("train", "vae", *TRAIN)["best"]
    assert document["results"][0]["psnr"]["mean"] == pytest.approx(best["val_psnr"], abs=1e-4)
    assert document["results"][0]["ssim"]["mean"] == pytest.approx(best["val_ssim"], abs=1e-4)
    assert document["results"][0]["lpips"] is None


# Streams


def test_json_alone_is_on_stdout_while_notices_go_to_stderr(trained):
    ok("grid")
    noisy = invoke("grid", "--n", "30", "--json")  # there are 3 images, and the file is there already
    assert json.loads(noisy.stdout)["rows"] == ["Ground Truth", "AE", "VAE"]
    assert [line[:6] for line in noisy.stderr.splitlines()] == ["Note: "] * 2


@pytest.mark.parametrize("width", [200, 80, 40])
def test_metrics_that_a_terminal_has_no_room_for_stand_in_another_table(monkeypatch, width):
    file = io.StringIO()
    monkeypatch.setattr(
        console, "stdout", lambda: Console(file=file, width=width, force_terminal=True, color_system=None)
    )
    headings = ["", *(f"METRIC-{index}" for index in range(7))]
    rows = [[Cell(name), *(Cell(f"{index}.123456", ("[0.1234, 0.5678]",)) for index in range(7))]
            for name in ("reconstructions", "b")]  # fmt: skip
    tables._print_cells(headings, rows)
    printed = [[line.rstrip() for line in table.splitlines()] for table in file.getvalue().split("\n\n")]
    assert len(printed) == {200: 1, 80: 3, 40: 7}[width]
    assert max(len(line) for table in printed for line in table) <= width
    assert [word for table in printed for word in table[0].split()] == headings[1:]
    for index in range(7):
        assert sum(f"{index}.123456" in line for table in printed for line in table) == 2
    for table in printed:
        assert sum(line.startswith("b ") for line in table) == 1


# A terminal, for real


@pytest.mark.slow
def test_bars_fit_a_terminal_of_80_columns_and_ctrl_c_saves(workplace):
    # Epochs longer than the quarter of a second between two reports of steps, whose bar is to be seen.
    command = ["train", "vae", *TRAIN, "--image-size", "128", "--width", "8", "--batch-size", "1",
               "--epochs", "123456", "--compile", "off", "--out", "o\x1b[31mut"]  # fmt: skip
    process, terminal = begin_in_terminal(workplace, 80, command, NO_COLOR="1")
    output = b""
    try:
        for piece in output_of(terminal):
            shows_all = output.count(b"dB") >= 3 and b"img/s" in output
            output += piece
            if not shows_all and output.count(b"dB") >= 3 and b"img/s" in output:
                os.kill(process.pid, signal.SIGINT)
        assert end(process) == 130
    finally:
        process.kill()
    text = output.decode()
    assert "interrupted after epoch" in text and "run the same command again" in text
    assert "\x1b[31mut" not in text, "the folder's name reached the terminal raw"
    assert not re.search(r"\x1b\[[\d;]*[349][0-7]", text), "NO_COLOR is set"
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text)
    lines = [line for line in re.split(r"[\r\n]+", plain) if line.startswith(("epoch", "step"))]
    assert lines and max(map(len, lines)) <= 80
    shown = " ".join(lines)
    for word in ("123456", "loss", "lr", "img/s", "best", "dB", "left"):
        assert word in shown
    assert "…" not in shown, "a bar's text is cut"
