"""Names of files that would steer a terminal, forge a line or be no text at all, through every command."""

import csv
import json
import os
import subprocess
import sys

import pytest
from typer.testing import Result

from aecli.errors import single_line
from tests.support.trained import TINY, invoke

ESCAPES = "\x1b]0;owned\x07\x1b[31m"
NAMES = [f"{ESCAPES}red", "a\nError: forged", "c\rd", "[bold]b[red]", "\udcff\udcfe", "\u202etxt", "d\x9b2J",
         '=cmd,"x"', "x" * 240]  # fmt: skip


def check(stdout: str, stderr: str) -> None:
    """All output is plain text; a failure takes two lines at most, none of them a file's name."""
    for text in (stdout, stderr):
        assert all(char.isprintable() or char == "\n" for char in text), ascii(text)
    assert not any(line.startswith("Error: forged") for line in (stdout + stderr).splitlines())
    errors = stderr.partition("Error: ")[2]
    assert len(errors.splitlines()) <= 2, stderr


def run(*args: str, status: int = 0) -> Result:
    done = invoke(*args)
    assert done.exit_code == status, done.output
    check(done.stdout, done.stderr)
    return done


@pytest.fixture
def folder(workplace):
    """In `images`, twelve plain names and the others; in `broken`, one whole image and the others, which are none."""
    (workplace / "broken").mkdir()
    whole = (workplace / "images" / "i1.png").read_bytes()
    try:
        for number, name in enumerate(NAMES):
            (workplace / "images" / f"{name}.png").write_bytes(whole + bytes(number))
            (workplace / "broken" / f"{name}.png").write_bytes(b"no image")
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    (workplace / "broken" / "whole.png").write_bytes(whole)
    return workplace


def test_single_line_spells_out_what_can_not_be_printed_and_cuts_what_is_long():
    assert single_line("a b[ü]") == "a b[ü]"
    assert single_line(f"{ESCAPES}\n\r\u202e\udcff\0") == r"\x1b]0;owned\x07\x1b[31m\n\r\u202e\xff\x00"
    assert len(single_line("x" * 10_000)) < 250


@pytest.mark.usefixtures("no_pictures")
def test_names_go_through_every_command_and_none_reaches_the_terminal(folder):
    run("train", "ae", "--data", "images", "--val-fraction", "0.3", *TINY, "--cache", "off")
    run("train", "ae", "--data", "broken", *TINY, "--cache", "off", "--out", f"x {ESCAPES}", status=1)
    out = f"out {ESCAPES} [bold]"
    assert "[bold]" in run("reconstruct", "--model", "ae", "--data", "images", "--out", out).stdout
    assert {f"{name}.png" for name in NAMES} <= set(os.listdir(out))
    run("reconstruct", "--model", "ae", "--data", "broken", "--out", "y", status=1)
    found = json.loads(run("reconstruct", "--model", "ae", "--data", "broken", "--out", "z", "--json", status=1).stdout)
    assert set(found["unreadable"]) == {f"{name}.png" for name in NAMES}
    run("grid", "--model", "ae", "--data", "broken", "--n", "1", "--out", "g.png")
    run("grid", "--model", "ae", "--data", "images", "--n", "19", "--out", "h.png")


def test_names_in_the_tables_of_eval_are_those_of_the_files(folder):
    psnr = ("--metrics", "psnr")
    run("eval", "--gt", "images", "--pred", "images", *psnr, "--per-image", "a.csv")
    with open("a.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["name"] for row in rows} >= {f"{name}.png" for name in NAMES}
    assert len(rows) == 12 + len(NAMES)
    run("eval", "--gt", "images", "--pred", "broken", *psnr, status=1)
    report = json.loads(
        run("eval", "--gt", "broken", "--pred", "broken", *psnr, "--on-mismatch", "skip", "--json").stdout
    )
    assert {each["name"] for each in report["unpaired"]} == {f"{name}.png" for name in NAMES}


def test_a_real_process_writes_such_names_as_plain_text(folder):
    args = ("eval", "--gt", "broken", "--pred", "a\x1b[31m\n=broken", "--metrics", "psnr", "--on-mismatch", "skip")
    done = subprocess.run([sys.executable, "-m", "aecli", *args], capture_output=True, check=True)
    check(done.stdout.decode(), done.stderr.decode())
