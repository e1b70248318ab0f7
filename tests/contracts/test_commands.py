"""What every command keeps to: help, usage errors and completion without PyTorch, JSON alone on stdout, a page."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from aecli.cli.app import app
from tests.support import resuming
from tests.support.commands import reference
from tests.support.names import AUTOENCODERS
from tests.support.trained import JOBS, invoke, ok, ok_json

ROOT = Path(__file__).parent.parent.parent
COMMANDS = tuple(typer.main.get_command(app).commands)
HEAVY = ("torch", "torchvision", "lpips", "skimage", "matplotlib", "scipy", "numpy", "PIL", "safetensors")

# Runs every case in one process, the real entry point each time, and looks at sys.modules after each.
SCRIPT = """
import contextlib, io, json, os, sys
from aecli.cli.main import main
def leave(status):
    raise SystemExit(status)
os._exit = leave  # the process goes on to the next case
answers = []
for case in json.load(sys.stdin):
    os.environ.update(case["env"])
    sys.argv = ["aecli", *case["args"]]
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            status = ended.code or 0
    for name in case["env"]:
        del os.environ[name]
    loaded = sorted(name for name in case["heavy"] if name in sys.modules)
    answers.append({"out": out.getvalue(), "err": err.getvalue(), "status": status, "loaded": loaded})
json.dump(answers, sys.stdout)
"""

HELP = [["--help"], ["-h"], ["--version"], *([command, "--help"] for command in COMMANDS)]
TRAIN_WRONG = ("--nope", "--fit nonsense", "--epochs 0", "--epochs x", "--recipe nope", "--config no.toml", "-o width")
WRONG = [
    ["train"], ["nope"], *(["train", "vae", *words.split()] for words in TRAIN_WRONG), ["reconstruct"],
    ["reconstruct", "--model", "vae", "--split", "some"], ["sample", "--model", "vae", "--n", "0"],
    ["sample", "--model", "vae", "--temperature", "-1"], ["eval", "--gt", "x", "--pred", "y", "--metrics", "fd"],
    ["export", "--model", "vae", "--out", "x", "--format", "gguf"], ["grid", "--device", "tpu"],
    ["models", "--precision", "fp8"],
]  # fmt: skip
COMPLETIONS = {
    "aecli ": set(COMMANDS),
    "aecli rec": {"reconstruct"},
    "aecli train ": {*AUTOENCODERS, "prior"},
    "aecli train v": {"vae", "vq"},
    "aecli train vae --val-": {"--val-data", "--val-images", "--val-fraction"},
    "aecli train vae --fit ": {"squash", "crop", "random-crop"},
    "aecli train vae --recipe q": {"quick"},
    "aecli train vae --data d": {"demo"},
    "aecli train vae --device c": {"cpu", "cuda"},
    "aecli train vae --precision b": {"bf16"},
    "aecli reconstruct --model ": set(AUTOENCODERS),
    "aecli reconstruct --split t": {"train"},
    "aecli encode --format l": {"lightningdit"},
    "aecli decode --model a": {"ae"},
    "aecli sample --model v": {"vae", "vq"},
    "aecli export --format t": {"torch"},
    "aecli grid --model a": {"ae"},
    "aecli eval --gt demo --model a": {"ae"},
    "aecli grid --data t": {"torchvision:", "torchvision:CIFAR10", "torchvision:STL10"},
    "aecli eval --on-mismatch s": {"skip"},
    "aecli eval --lpips-net ": {"alex", "vgg", "squeeze"},
}


def completion(words):
    environment = {"_AECLI_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    return {"args": [], "env": environment, "heavy": HEAVY}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    cases = [{"args": args, "env": {}, "heavy": HEAVY} for args in (*HELP, *WRONG)]
    cases += [completion(words) for words in COMPLETIONS]
    forcing = ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS")
    environment = {key: value for key, value in os.environ.items() if key not in forcing}
    run = subprocess.run(
        [sys.executable, "-W", "error:::aecli", "-c", SCRIPT], input=json.dumps(cases), capture_output=True, text=True,
        env={**environment, "COLUMNS": "80", "PYTHONPATH": str(ROOT)}, timeout=600,
        cwd=tmp_path_factory.mktemp("empty"),
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    return {json.dumps([case["args"], case["env"]]): answer for case, answer in zip(cases, found, strict=True)}


def answer_to(answers, args, env=None):
    return answers[json.dumps([args, env or {}])]


@pytest.mark.parametrize("args", HELP, ids=" ".join)
def test_help_answers_without_torch(answers, args):
    answer = answer_to(answers, args)
    assert (answer["status"], answer["err"], answer["loaded"]) == (0, "", [])
    assert "aecli" in answer["out"]
    assert max(map(len, answer["out"].splitlines())) <= 80
    assert "\x1b" not in answer["out"]


@pytest.mark.parametrize("args", WRONG, ids=" ".join)
def test_wrong_usage_is_status_2_without_torch(answers, args):
    answer = answer_to(answers, args)
    assert (answer["status"], answer["out"], answer["loaded"]) == (2, "", [])
    assert "Traceback" not in answer["err"] and "\x1b" not in answer["err"]
    assert answer["err"].strip()


@pytest.mark.parametrize("words", COMPLETIONS)
def test_completion_without_torch(answers, words):
    case = completion(words)
    answer = answer_to(answers, case["args"], case["env"])
    assert set(answer["out"].split()) == COMPLETIONS[words]
    assert answer["loaded"] == []


@pytest.mark.parametrize(
    ("command", "panels"),
    [
        ("train", ["Data", "Model", "Recipe", "Run", "Machine", "Output"]),
        ("reconstruct", ["Data", "Model", "Run", "Machine", "Output"]),
        ("encode", ["Data", "Model", "Run", "Machine", "Output"]),
        ("decode", ["Data", "Model", "Run", "Machine", "Output"]),
        ("sample", ["Model", "Run", "Machine", "Output"]),
        ("eval", ["Data", "Metrics", "Machine", "Output"]),
        ("compare", ["Output"]),
        ("score", ["Data", "Model", "Metrics", "Run", "Machine", "Output"]),
        ("grid", ["Data", "Model", "Run", "Machine", "Output"]),
        ("export", ["Data", "Model", "Run", "Machine", "Output"]),
        ("models", ["Run", "Machine", "Output"]),
    ],
)
def test_options_stand_in_named_panels(answers, command, panels):
    out = answer_to(answers, [command, "--help"])["out"]
    assert [panel for panel in panels if f"╭─ {panel} ─" not in out] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_json_quiet_and_device(answers, command):
    out = answer_to(answers, [command, "--help"])["out"]
    flags = ("--json", "--quiet") if command == "compare" else ("--json", "--quiet", "--device")
    assert [flag for flag in flags if flag not in out] == []


def test_the_version_is_the_packages(answers):
    from aecli._version import __version__

    assert answer_to(answers, ["--version"])["out"] == f"aecli {__version__}\n"


def test_help_names_both_values_of_beta_in_the_report(answers):
    out = answer_to(answers, ["train", "--help"])["out"]
    assert "2.5e-5" in out and "2.5e-4" in out


def test_every_command_is_here():
    assert set(JOBS) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
class TestEveryCommand:
    @pytest.fixture(autouse=True)
    def evaluations(self, trained, command):
        """What `compare` compares."""
        if command == "compare":
            for name in JOBS[command][1:]:
                (trained / name).write_text(ok(*JOBS["eval"], "--json").stdout)

    def test_json_is_one_document_and_nothing_else_on_stdout(self, trained, command):
        assert isinstance(ok_json(*JOBS[command]), dict)

    def test_quiet_leaves_the_result_alone(self, trained, command):
        """The second time it is a run that is finished, or files that are replaced, which gives a notice."""
        overwrite = ["--overwrite"] if command in ("reconstruct", "decode", "export") else []
        for _ in range(2):
            result = ok(*JOBS[command], *overwrite, "--quiet")
            assert result.stderr == "" and result.stdout.strip()

    @pytest.mark.parametrize("extra", [["--nope"], ["--nope", "3"], ["stray", "-x"], ["--", "a", "b"]], ids=" ".join)
    def test_what_is_no_option_is_wrong_usage(self, trained, command, extra):
        before = sorted(trained.rglob("*"))
        result = invoke(*JOBS[command], *extra)
        assert (result.exit_code, result.stdout) == (2, "")
        assert any(word in result.stderr for word in ("--nope", "stray", "-x", "a b"))
        assert sorted(trained.rglob("*")) == before

    def test_has_a_section_in_the_reference(self, command):
        page = (ROOT / "examples" / "COMMANDS.md").read_text(encoding="utf-8")
        assert f"## `aecli {command} " in page


def test_the_page_on_resuming_is_the_programs():
    page = (ROOT / "examples" / "RESUMING.md").read_text(encoding="utf-8")
    assert page == resuming.page(), "write it anew: python -m tests.support.resuming > examples/RESUMING.md"


def test_the_reference_is_the_programs():
    page = (ROOT / "examples" / "COMMANDS.md").read_text(encoding="utf-8")
    assert page == reference(), "write it anew: python -m tests.support.commands > examples/COMMANDS.md"
