"""What appears where: results on stdout, the rest on stderr, nothing that steers a terminal."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aecli.cli.main import set_up_process
from aecli.runs.folder import RunFolder
from aecli.training.events import Finished
from tests.support.trained import SIZE, TRAIN, VAL, invoke, ok, ok_json, png, write_images

# eval


def test_eval_prints_the_reports_table_and_its_json(trained):
    ok("reconstruct", "--model", "vae", "--out", "vae")
    ok("reconstruct", "--model", "ae", "--out", "ae")
    for name in VAL:
        with Image.open(trained / f"images/{name}.png") as original:
            small = original.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        (trained / f"truth/{name}").parent.mkdir(parents=True, exist_ok=True)
        small.save(trained / f"truth/{name}.png")
    arguments = ["eval", "--gt", "truth", "--pred", "AE=ae", "--pred", "vae", "--per-image", "numbers.csv"]
    table = ok(*arguments).stdout
    document = ok_json(*arguments)
    errors = [
        np.square(png(trained / f"truth/{name}.png").astype(float) - png(trained / f"ae/{name}.png")).mean()
        for name in VAL
    ]
    psnr = float(np.mean(10 * np.log10(255**2 / np.array(errors))))
    assert document["n"] == 3
    assert [result["name"] for result in document["results"]] == ["AE", "vae"]
    assert document["results"][0]["psnr"]["mean"] == pytest.approx(psnr, abs=1e-9)
    assert f"{psnr:.2f}" in table and "LPIPS" in table
    assert {"psnr", "ssim", "lpips"} <= set(document["definitions"])
    assert (trained / "numbers.csv").read_text().splitlines()[0] == "name,prediction,psnr,ssim,lpips"
    assert json.loads((trained / "runs/ae/config.json").read_text())["split"]["val"] == len(VAL)


def test_validation_psnr_is_what_eval_says_of_the_reconstructions(trained):
    """The same images through the same functions: in memory while training, on disk afterwards."""
    shutil.copytree(trained / "images", trained / "truth")
    for path in (trained / "truth").rglob("*.png"):
        with Image.open(path) as original:
            original.resize((SIZE, SIZE), Image.Resampling.BILINEAR).save(path)
    ok("reconstruct", "--model", "vae", "--out", "out")
    document = ok_json("eval", "--gt", "truth", "--pred", "out", "--metrics", "psnr,ssim", "--on-mismatch", "skip")
    best = ok_json("train", "vae", *TRAIN)["best"]
    assert document["results"][0]["psnr"]["mean"] == pytest.approx(best["val_psnr"], abs=1e-4)
    assert document["results"][0]["ssim"]["mean"] == pytest.approx(best["val_ssim"], abs=1e-4)
    assert document["results"][0]["lpips"] is None


# --quiet


@pytest.mark.parametrize(
    "args",
    [
        ["train", "vae", *TRAIN],
        ["train", "ae", *TRAIN, "--out", "new"],
        ["reconstruct", "--model", "ae", "--out", "taken", "--overwrite"],
        ["sample", "--model", "vae", "--n", "2", "--out", "taken.png"],
        ["grid", "--out", "taken.png"],
        ["eval", "--gt", "images", "--pred", "images", "--metrics", "psnr"],
    ],
    ids=lambda args: args[0],
)
def test_quiet_says_nothing_but_the_result(trained, args):
    (trained / "taken").mkdir()
    (trained / "taken/other.png").write_text("")
    (trained / "taken.png").write_text("")
    result = ok(*args, "--quiet")
    assert result.stderr == ""
    assert result.stdout.strip()


# Streams


def test_json_alone_is_on_stdout_while_notices_go_to_stderr(trained):
    ok("grid")
    noisy = invoke("grid", "--n", "30", "--json")  # there are 3 images, and the file is there already
    assert json.loads(noisy.stdout)["rows"] == ["Ground Truth", "AE", "VAE"]
    assert noisy.stderr.splitlines() == [
        "Note: drawing 3 images: there are no more",
        "Note: replacing grid.png",
    ]


@pytest.mark.parametrize("name", ["a\x1b[31mred", "b\nsecond line", "c[bold]x[/bold]", "d\x9b2J\u202egnp", "e\x07\r"])
def test_file_names_steer_no_terminal(trained, name):
    write_images(trained / "odd", ["fine", name])
    (trained / f"odd/{name}.png").write_bytes(b"no image")
    result = invoke("reconstruct", "--model", "vae", "--data", "odd", "--out", f"out {name}")
    assert result.exit_code == 1
    shown = result.stdout + result.stderr
    assert [char for char in shown if not (char.isprintable() or char == "\n")] == []
    assert "[bold]x[/bold]" in shown or "[bold]" not in name
    refused = invoke("train", "ae", *TRAIN, "--data", "odd", "--out", f"run {name}")
    assert refused.exit_code == 1
    assert [char for char in refused.stderr if not (char.isprintable() or char == "\n")] == []


def test_surrogates_in_file_names_survive(trained):
    write_images(trained / "odd", ["fine"])
    raw = os.fsencode(trained / "odd") + b"/caf\xe9.png"
    shutil.copy(trained / "odd/fine.png", raw)
    document = ok_json("reconstruct", "--model", "vae", "--data", "odd", "--out", "out")
    assert document["written"] == 2
    assert os.path.exists(os.fsencode(trained / "out") + b"/caf\xe9.png")
    os.truncate(raw, 4)
    result = invoke("reconstruct", "--model", "vae", "--data", "odd", "--out", "out", "--overwrite")
    assert result.exit_code == 1
    assert "caf" in result.stderr


# A terminal, for real


def read_until(terminal, output, wanted, seconds):
    """Read the terminal into `output` until `wanted()` or its end."""
    deadline = time.monotonic() + seconds
    while not wanted() and time.monotonic() < deadline:
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # what Linux says at the end
            return
        if not chunk:
            return
        output += chunk


@pytest.mark.slow
def test_bars_fit_a_terminal_of_80_columns_and_ctrl_c_saves(workplace):
    command = [sys.executable, "-m", "aecli", "train", "vae", *TRAIN, "--epochs", "123456", "--out", "o\x1b[31mut"]
    terminal, theirs = pty.openpty()
    forcing = ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "LINES")
    environment = {key: value for key, value in os.environ.items() if key not in forcing}
    environment |= {"COLUMNS": "80", "TERM": "xterm-256color", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent.parent)
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True, close_fds=True
    )
    os.close(theirs)
    output = bytearray()
    try:
        read_until(terminal, output, lambda: output.count(b"dB") >= 3 and b"img/s" in output, 60)
        process.send_signal(2)
        read_until(terminal, output, lambda: process.poll() is not None and b"again to go on" in output, 30)
        assert process.wait(30) == 130
    finally:
        process.kill()
        os.close(terminal)
    text = output.decode()
    assert process.returncode == 130
    assert "interrupted after epoch" in text and "run the same command again" in text
    assert "\x1b[31mut" not in text, "the folder's name reached the terminal raw"
    assert not re.search(r"\x1b\[[\d;]*[349][0-7]", text), "NO_COLOR is set"
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text)
    lines = [line for line in re.split(r"[\r\n]+", plain) if line.startswith(("epoch", "step"))]
    assert lines
    assert max(map(len, lines)) <= 80
    shown = " ".join(lines)
    for word in ("123456", "loss", "lr", "img/s", "best", "dB", "left"):
        assert word in shown
    assert "…" not in shown, "a bar's text is cut"


@pytest.mark.parametrize(("best_epoch", "epochs", "told"), [(22, 200, True), (150, 200, False), (2, 15, False)])
def test_the_summary_tells_when_validation_stopped_improving_long_ago(capsys, best_epoch, epochs, told):
    from aecli.cli.live import _print_finished

    end = Finished(RunFolder(Path("runs/vae")), epochs, best_epoch, {"val_loss": 0.1}, False, False)
    _print_finished(end)
    assert (f"validation loss has not improved since epoch {best_epoch};" in capsys.readouterr().out) == told


def test_openmp_threads_wait_briefly_unless_the_user_says_how(monkeypatch):
    monkeypatch.setattr("aecli.cli.main.gc.set_threshold", lambda *counts: None)
    monkeypatch.setattr("aecli.cli.main.warnings.filterwarnings", lambda *rule, **where: None)
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    set_up_process()
    assert os.environ["GOMP_SPINCOUNT"] == "3000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    set_up_process()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    set_up_process()
    assert "GOMP_SPINCOUNT" not in os.environ
