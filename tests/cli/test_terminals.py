"""Terminals that lack characters or columns, and file names that are no text."""

import json
import os
import re
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
import typer

from aecli.cli.app import app
from aecli.cli.main import _Stream
from aecli.cli.narrow_help import NARROW
from tests.support.trained import JOBS, TINY, invoke, ok, ok_json, pngs, write_images

COMMANDS = typer.main.get_command(app).commands
HELP = [["--help"], *([command, "--help"] for command in COMMANDS)]
ENCODINGS = ("ascii", "latin-1", "cp1252")


@pytest.fixture
def printed(monkeypatch):
    """Runs `aecli` with streams of an encoding; what it wrote to both, as text."""

    def run(encoding: str, *args: str) -> str:
        written = BytesIO()
        streams = TextIOWrapper(written, encoding, errors="backslashreplace")
        with monkeypatch.context() as patch:
            for name in ("stdout", "stderr"):
                patch.setattr(sys, name, _Stream(streams))
            with pytest.raises(SystemExit) as ended:
                app([*args], prog_name="aecli")
            streams.flush()
        assert ended.value.code == 0
        return written.getvalue().decode(encoding)

    return run


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("command", ["train", "eval", "grid", "models"])
def test_what_an_encoding_lacks_is_said_in_ascii(trained, printed, encoding, command):
    shown = printed(encoding, *JOBS[command])
    assert not re.search(r"\\[xuU]", shown), "an escape is shown"
    words = {"eval": "PSNR ^", "models": "39,076,163", "train": "validation loss", "grid": "Ground Truth"}
    assert words[command] in shown


def test_a_table_keeps_its_columns_in_ascii(trained, printed):
    lines = printed("ascii", "models", "--runs", "absent").splitlines()[:3]
    assert "1024x8x8" in lines[1] and "GFLOP at 256^2" in lines[0]
    assert lines[0].index("GFLOP at 256^2") + len("GFLOP at 256^2") == lines[1].index("23.9") + 4


def test_a_dry_run_is_ascii_where_it_must_be(trained, printed):
    shown = printed("ascii", *JOBS["train"], "--dry-run")
    assert shown.isascii() and "latent 64x1x1" in shown and not re.search(r"\\[xuU]", shown)


@pytest.mark.parametrize("columns", ["40", str(NARROW - 1), str(NARROW)])
@pytest.mark.parametrize("args", HELP, ids=" ".join)
def test_help_has_whole_names_in_any_width(monkeypatch, args, columns):
    monkeypatch.setenv("COLUMNS", columns)
    shown = ok(*args).stdout
    flags = ["--version", *COMMANDS]
    if args[0] in COMMANDS:
        shown_options = (each for each in COMMANDS[args[0]].params if not getattr(each, "hidden", False))
        flags = [flag for each in shown_options for flag in each.opts if flag.startswith("-")]
    words = set(re.split(r"[\s,│|]+", shown))
    assert [flag for flag in flags if flag not in words] == []
    widest = max(len(line) for line in shown.splitlines())
    assert widest <= max(int(columns), 40), "only a name may be wider"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_help_is_shown_in_any_encoding(printed, encoding):
    for args in HELP:
        assert not re.search(r"\\[xuU]", printed(encoding, *args))


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
class TestNamesThatAreNoText:
    @pytest.fixture
    def odd(self, trained):
        """The folder b"d\xff" with b"caf\xe9.png", readable, and b"\xfe.png", which is no image."""
        write_images(trained / "odd", ["a", "b", "c", "d"])
        os.rename("odd", b"d\xff")
        os.rename(b"d\xff/a.png", b"d\xff/caf\xe9.png")
        return os.fsdecode(b"d\xff")

    def test_reconstructions_have_the_same_bytes(self, odd):
        ok("reconstruct", "--model", "vae", "--data", odd, "--out", os.fsdecode(b"out\xff"))
        assert sorted(os.listdir(b"out\xff")) == [b"b.png", b"c.png", b"caf\xe9.png", b"d.png"]
        document = ok_json("eval", "--gt", odd, "--pred", os.fsdecode(b"out\xff"), "--image-size", "32", "--fit",
                           "squash", "--metrics", "psnr", "--per-image", "each.csv")  # fmt: skip
        assert document["n"] == 4
        with open("each.csv", "rb") as file:
            assert b"\ncaf\xe9.png," in file.read()

    def test_a_run_is_trained_and_resumed_on_them(self, odd):
        args = ["train", "vae", "--data", odd, "--val-fraction", "0.3", *TINY, "--out", os.fsdecode(b"run\xff")]
        assert r"run\xff finished: 2 epochs" in ok(*args).stdout
        document = ok_json(*args, "--epochs", "3")
        assert os.fsencode(document["run"]) == b"run\xff" and document["epochs"] == 3
        assert os.path.exists(b"run\xff/model.safetensors")
        ok("grid", "--model", os.fsdecode(b"run\xff"), "--out", os.fsdecode(b"g\xff.png"))
        assert os.path.exists(b"g\xff.png")

    def test_one_that_is_unreadable_is_named_by_its_bytes(self, odd):
        with open(b"d\xff/\xfe.png", "wb") as file:
            file.write(b"no image")
        result = invoke("reconstruct", "--model", "vae", "--data", odd, "--out", "out", "--json")
        assert result.exit_code == 1 and r"\xfe.png: not a PNG" in result.stderr
        assert [os.fsencode(name) for name in json.loads(result.stdout)["unreadable"]] == [b"\xfe.png"]
        assert r"'\xfe.png' (not a PNG" in invoke("eval", "--gt", odd, "--pred", odd, "--metrics", "psnr").stderr
        assert len(pngs(Path("out"))) == 4
