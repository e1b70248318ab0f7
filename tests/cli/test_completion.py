"""Completion in shells as people meet it: keys typed into a terminal, and what the command line becomes."""

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.names import AUTOENCODERS
from tests.support.trained import write_images

SECONDS = 300.0  # for an answer; a completion starts aecli, on a busy machine


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs (vae, vae-2, ae), images, weights, files of options and a command called `aecli`."""
    root = tmp_path_factory.mktemp("shell")
    for name in ("vae", "vae-2", "ae"):
        make_run(root / "runs" / name)
    make_run(root / "elsewhere" / "best")
    make_run(root / "runs" / "it's; touch stolen $(touch stolen)")
    (root / "runs" / "notes").mkdir()
    write_images(root / "photos", ["a"])
    write_images(root / "my photos", ["a"])
    write_images(root / "data", ["a"])
    for name in ("old.safetensors", "photos.zip", "mine.toml", "my notes.txt"):
        (root / name).write_bytes(b"")
    command = root / "bin" / "aecli"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m aecli "$@"\n')
    command.chmod(0o755)
    return root


def make_run(folder: Path) -> None:
    """What completion looks at of a run: a config.json of aecli's."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        '{"schema": 1, "model": {"name": "vae", "options": {}}, "data": {"fingerprint": "", "images": 1}, '
        '"val_data": null, "placement": {"device": "cpu", "compile": false}, "began": "", "options": '
        '{"data": "demo", "val_data": null, "val_fraction": 0.1, "image_size": 32, '
        '"fit": "crop", "epochs": 1, "options": {}}}'
    )
    for name in ("model", "last"):
        (folder / f"{name}.safetensors").write_bytes(b"")


def environment(place: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("COMP_", "_AECLI", "BASH", "ZDOT"))}
    path = os.pathsep.join([str(place / "bin"), os.environ["PATH"]])
    source = str(Path(__file__).parent.parent.parent)
    return {**kept, "PATH": path, "PYTHONPATH": source, "HOME": str(place), "TERM": "xterm", "COLUMNS": "100",
            "LC_ALL": "C.UTF-8"}  # fmt: skip


def script(shell: str, place: Path) -> str:
    """The completion script that aecli prints for that shell."""
    return subprocess.run(
        ["aecli", "--show-completion", shell], capture_output=True, text=True, check=True, timeout=SECONDS,
        env={**environment(place), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
    ).stdout  # fmt: skip


class Shell:
    """An interactive shell on a terminal of its own."""

    PROMPT = "READY> "

    def __init__(self, command: list[str], place: Path, setup: list[str]) -> None:
        self._process, self._terminal = pty.fork()
        if self._process == 0:
            os.chdir(place)
            os.execvpe(command[0], command, environment(place))
        self._seen = ""
        for line in setup:
            self.send(line + "\n")
        self.send("PS1='REA''DY> '; PS2=\n")
        self.read_until(self.PROMPT)

    def send(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def read_until(self, text: str) -> str:
        """What the terminal showed up to and with `text`."""
        until = time.monotonic() + SECONDS
        while text not in self._seen:
            ready, _, _ = select.select([self._terminal], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"no {text!r} in {self._seen!r}"
            self._seen += os.read(self._terminal, 65536).decode(errors="replace")
        shown, self._seen = (part for part in self._seen.split(text, 1))
        return shown

    def complete(self, typed: str, tabs: int = 1) -> tuple[list[str], str]:
        """The words that the command line holds after `typed` and TABs, `|` where the cursor is; what was shown.

        The line is then given to printf in place of aecli. A shell reads keys only when the completion is there.
        """
        self.send(typed + "\t" * tabs + "'|'\x01printf '<%s>' \x05; echo; echo DO''NE\n")
        shown = self.read_until("DONE")
        self.read_until(self.PROMPT)
        shown = re.sub(r"\x07|\x1b\[[0-9;?]*[A-Za-z]", "", shown)  # bells, and what moves the cursor
        return re.findall(r"<([^<>]*)>", shown.splitlines()[-1]), shown

    def close(self) -> None:
        os.kill(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        os.close(self._terminal)


@pytest.fixture(scope="module")
def bash(place):
    path = place / "completion.bash"
    path.write_text(script("bash", place))
    shell = Shell(
        ["bash", "--norc", "--noprofile", "-i"], place, ["bind 'set enable-bracketed-paste off'", f". {path}"]
    )
    yield shell
    shell.close()


LINES = {
    "aecli rec": ["reconstruct", "|"],
    "aecli reconstruct --spl": ["reconstruct", "--split", "|"],
    "aecli train va": ["train", "vae", "|"],
    "aecli train vae --fit cr": ["train", "vae", "--fit", "crop", "|"],
    # Runs and weights; a run folder is whole, another folder goes on.
    "aecli reconstruct --model va": ["reconstruct", "--model", "vae", "|"],
    "aecli reconstruct --model ru": ["reconstruct", "--model", "runs/|"],
    "aecli reconstruct --model runs/a": ["reconstruct", "--model", "runs/ae", "|"],
    "aecli sample --model runs/vae-": ["sample", "--model", "runs/vae-2", "|"],
    "aecli sample --runs elsewhere --model e": ["sample", "--runs", "elsewhere", "--model", "elsewhere/best", "|"],
    "aecli grid --model ae --model elsewhere/b": ["grid", "--model", "ae", "--model", "elsewhere/best", "|"],
    "aecli grid --model o": ["grid", "--model", "old.safetensors", "|"],
    "aecli grid --model runs/vae/m": ["grid", "--model", "runs/vae/model.safetensors", "|"],
    "aecli grid --model runs/n": ["grid", "--model", "runs/notes/|"],
    "aecli grid --model ~/runs/a": ["grid", "--model", "{home}/runs/ae/|"],
    # Paths that nothing of aecli's begins like, in the shell's own way: quoted, no blank after a folder.
    "aecli grid --model runs/it": ["grid", "--model", "runs/it's; touch stolen $(touch stolen)/|"],
    "aecli train vae --data photos/a": ["train", "vae", "--data", "photos/a.png", "|"],
    "aecli train vae --data my\\ p": ["train", "vae", "--data", "my photos/|"],
    "aecli train vae --out ru": ["train", "vae", "--out", "runs/|"],
    "aecli train vae --config mi": ["train", "vae", "--config", "mine.toml", "|"],
    # Words and paths side by side.
    "aecli train vae --data de": ["train", "vae", "--data", "demo", "|"],
    "aecli train vae --data h": ["train", "vae", "--data", "hf:|"],
    "aecli train vae --data ph": ["train", "vae", "--data", "photos|"],
    "aecli train vae --data photos.": ["train", "vae", "--data", "photos.zip", "|"],
    "aecli eval --gt photos. --pred ours=el": ["eval", "--gt", "photos.", "--pred", "ours=elsewhere/|"],
    "aecli train vae --data=el": ["train", "vae", "--data=elsewhere/|"],
}  # fmt: skip


# One of each kind: a word, a run, a file, a folder that goes on, a name to be quoted, the home, a value behind `=`.
IN_CI = {
    "aecli rec", "aecli reconstruct --model runs/a", "aecli grid --model o", "aecli train vae --out ru",
    "aecli grid --model runs/it", "aecli grid --model ~/runs/a", "aecli eval --gt photos. --pred ours=el",
}  # fmt: skip


@pytest.mark.parametrize(
    "typed", [pytest.param(typed, marks=pytest.mark.slow if typed in IN_CI else pytest.mark.soak) for typed in LINES]
)
def test_what_bash_makes_of_a_tab(bash, place, typed):
    words, _ = bash.complete(typed)
    assert words == ["aecli", *(word.format(home=place) if "~" in typed else word for word in LINES[typed])]


LISTS = {
    "aecli reconstruct --model ": {*AUTOENCODERS, "runs/ae", "runs/vae", "runs/vae-2"},
    "aecli reconstruct --model runs/": {"runs/ae", "runs/vae", "runs/vae-2", "runs/notes/"},
    "aecli grid --model runs/vae/": {"runs/vae/last.safetensors", "runs/vae/model.safetensors"},
    "aecli train vae --data d": {"data/", "demo"},
    "aecli train vae --data ph": {"photos/", "photos.zip"},
    "aecli train vae --val-": {"--val-data", "--val-fraction", "--val-images"},
    "aecli ": {"train", "reconstruct", "encode", "decode", "sample", "interpolate", "traverse", "eval", "compare",
               "score", "grid", "export", "models"},
}  # fmt: skip


LISTS_IN_CI = {"aecli reconstruct --model ", "aecli grid --model runs/vae/"}


@pytest.mark.parametrize(
    "typed",
    [pytest.param(typed, marks=pytest.mark.slow if typed in LISTS_IN_CI else pytest.mark.soak) for typed in LISTS],
)
def test_what_bash_lists_after_two_more(bash, typed):
    _, shown = bash.complete(typed, tabs=3)
    assert set(re.findall(r"\S+", shown.split(bash.PROMPT)[0])[len(typed.split()) :]) == LISTS[typed]


@pytest.mark.slow
def test_nothing_that_is_offered_runs(bash, place):
    for typed in ("aecli grid --model ru", "aecli grid --model runs/i", "aecli grid --model "):
        bash.complete(typed, tabs=3)
    assert not (place / "stolen").exists()


# The other shells, by what their scripts ask for and get.

OFFERS = {
    "aecli reconstruct --model ru": {"runs/ae", "runs/vae", "runs/vae-2"},
    "aecli reconstruct --model o": {"old.safetensors"},
    "aecli grid --model elsewhere/": {"elsewhere/best"},
    "aecli train vae --data d": {"data/", "demo"},
    "aecli eval --pred ours=ph": {"ours=photos/", "ours=photos.zip"},
    "aecli eval --pred ours=de": {"ours=demo"},
    "aecli train vae --recipe q": {"quick"},
    "aecli train vae --data el": set(),
    "aecli train vae --out ru": set(),
}


def ask(place: Path, shell: str, line: str, action: str = "") -> subprocess.CompletedProcess[str]:
    asked = {
        "_AECLI_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": action,
    }
    return subprocess.run(
        ["aecli"], env={**environment(place), **asked}, cwd=place, capture_output=True, text=True, timeout=SECONDS,
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize("line", OFFERS)
def test_what_zsh_gets(place, line):
    answer = ask(place, "zsh", line)
    assert (answer.returncode, answer.stderr) == (0, "")
    if OFFERS[line]:
        assert answer.stdout.startswith("_arguments '*: :((")
        assert set(re.findall(r'"([^"]*)"', answer.stdout)) == OFFERS[line]
    else:
        assert answer.stdout.strip() == "_files"  # zsh's own way with paths


@pytest.mark.slow
@pytest.mark.parametrize("line", ["aecli reconstruct --model ru", "aecli train vae --data el"])
def test_what_fish_gets(place, line):
    has_some = ask(place, "fish", line, "is-args")
    assert (has_some.returncode, has_some.stdout, has_some.stderr) == (0 if OFFERS[line] else 1, "", "")
    answer = ask(place, "fish", line, "get-args")
    assert (set(answer.stdout.split()), answer.stderr) == (OFFERS[line], "")


def test_a_folder_of_runs_that_cannot_be_read_offers_nothing(place):
    answer = ask(place, "fish", "aecli grid --runs mine.toml --model runs/v", "get-args").stdout.split()
    assert sorted(answer) == ["runs/vae", "runs/vae-2"]  # as paths that they are
    assert ask(place, "fish", "aecli grid --runs absent --model ", "get-args").stdout.split() == list(AUTOENCODERS)


@pytest.fixture(scope="module")
def zsh(place):
    if shutil.which("zsh") is None:
        pytest.skip("no zsh here")
    path = place / "completion.zsh"
    path.write_text(script("zsh", place))
    setup = ["autoload -Uz compinit && compinit -u -D", "unsetopt prompt_cr prompt_sp zle_bracketed_paste", f". {path}"]
    shell = Shell(["zsh", "-f", "-i"], place, setup)
    yield shell
    shell.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("aecli reconstruct --model runs/a", ["reconstruct", "--model", "runs/ae", "|"]),
        ("aecli grid --model runs/it", ["grid", "--model", "runs/it's; touch stolen $(touch stolen)/|"]),
        ("aecli train vae --out ru", ["train", "vae", "--out", "runs/|"]),
    ],
)
def test_what_zsh_makes_of_a_tab(zsh, place, typed, words):
    assert zsh.complete(typed)[0] == ["aecli", *words]
    assert not (place / "stolen").exists()
