"""Every option of every command, taken from the app itself: an invalid value is refused in a line that names it."""

import inspect
import os
import re
import shutil
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import typer
from typer.models import OptionInfo

from aecli.cli.app import app
from aecli.errors import printable
from tests.support.trained import JOBS, TRAIN, fails, invoke, ok, ok_json, pngs, write_images

EVAL = JOBS["eval"]
SETS = ["eval", "--gt", "images", "--samples", "images"]
JOB_OF = {  # options that go with others
    ("train", "--model"): ["train", "prior", "--out", "new"],
    ("encode", "--scaling-factor"): [*JOBS["encode"], "--format", "npy"],
    ("eval", "--samples"): SETS[:3], ("eval", "--train"): SETS, ("eval", "--features"): SETS,
}  # fmt: skip
LONG = "x" * 5000
NO_COUNT = ["many", "1.5", "1e3", "nan", "inf", "0x10", "\N{SUPERSCRIPT TWO}", "9" * 5000, "-1"]
NO_NUMBER = ["many", "0x10", "\N{VULGAR FRACTION ONE HALF}", "nan", "inf", "-inf", "1e400", "-1"]
FEW_COUNTS, FEW_NUMBERS = ["many", "-1", "0"], ["many", "nan", "inf", "-1"]  # each option has bounds of its own
NO_CHOICE = ["other", "AUTO", "auto,cpu", "-1", LONG]
NO_IMAGES = ["absent", "absent/../images/i1.png", "/dev/null", "a\x1b[31mb", "\udcff", "~nobody-of-that-name", LONG]
NO_FOLDER = ["images/i1.png", "images/i1.png/x", "/dev/null", "/dev/null/x", "/proc/absent", LONG]
NO_FILE = ["images", "images/i1.png/x.png", "/dev/null/x.png", "/proc/absent/x.png", LONG]
NAMES_A_PLACE = {"absent", "/dev/null/x", "/dev/null/x.png"}
FLAGS = {"--overwrite", "--dry-run", "--native", "--floor", "--restart", "--flip", "--deterministic", "--json",
         "--quiet", "--skip-broken", "--allow-changed-data", "--turns", "--resized-crops"}  # fmt: skip
# Invalid values beyond those of the option's type, or in place of these.
SPECIAL = {
    ("train", "--log"): ["wandb", "1"],
    ("train", "--model"): NO_IMAGES, ("train", "--init"): NO_IMAGES, ("eval", "--train"): NO_IMAGES,
    ("eval", "--samples"): [*NO_IMAGES, "=x", "a="], ("eval", "--model"): [*NO_IMAGES, "=x", "a="],
    ("sample", "--steps"): [*NO_COUNT, "0", "2000"],
    ("interpolate", "--steps"): [*NO_COUNT, "0", "1", "2000"], ("traverse", "--steps"): [*NO_COUNT, "0", "1", "2000"],
    ("traverse", "--n"): [*NO_COUNT, "0", "1025"],
    ("interpolate", "--model"): NO_IMAGES, ("traverse", "--model"): NO_IMAGES,
    ("interpolate", "--out"): [*NO_FILE, "a.jpg"], ("traverse", "--out"): [*NO_FILE, "a.jpg"],
    ("reconstruct", "--latents"): ["codes.pt", "latents"],
    ("encode", "--data"): NO_IMAGES, ("encode", "--model"): NO_IMAGES, ("encode", "--out"): [*NO_FOLDER, "images", "."],
    ("encode", "--image-size"): [*NO_COUNT, "0", "33", "100000"], ("encode", "--scaling-factor"): [*NO_NUMBER, "0"],
    ("encode", "--shard-size"): [*NO_COUNT, "0", "100001"],
    ("decode", "--latents"): NO_IMAGES, ("decode", "--model"): NO_IMAGES,
    ("decode", "--out"): [*NO_FOLDER, "images", "."], ("decode", "--scaling-factor"): [*NO_NUMBER, "0"],
    ("decode", "--shift"): ["many", "0x10", "nan", "inf", "-inf", "1e400", "-1e10"],
    ("eval", "--report"): ["page.txt", "page"],
    ("train", "--data"): NO_IMAGES, ("train", "--val-data"): NO_IMAGES, ("reconstruct", "--data"): NO_IMAGES,
    ("grid", "--data"): NO_IMAGES, ("eval", "--gt"): NO_IMAGES, ("eval", "--pred"): [*NO_IMAGES, "=x", "a=", "images"],
    ("reconstruct", "--model"): NO_IMAGES, ("sample", "--model"): NO_IMAGES, ("grid", "--model"): NO_IMAGES,
    ("train", "--cache"): NO_FOLDER, ("train", "--out"): [*NO_FOLDER, "images"], ("train", "--runs"): NO_FOLDER,
    ("reconstruct", "--out"): [*NO_FOLDER, "images", "."], ("sample", "--out"): [*NO_FOLDER[1:], "images", "a.jpg"],
    ("sample", "--data"): NO_IMAGES, ("export", "--data"): NO_IMAGES, ("export", "--model"): NO_IMAGES,
    ("export", "--out"): [*NO_FOLDER, "images", "runs/vae"],
    ("export", "--license"): ["MIT License", "-x", "x" * 65, "\n", LONG],
    ("export", "--push"): ["me/model", "hf:model", "hf:a/b/c", "hf:/b", "hf:a/..", "hf:a/b c", LONG],
    ("score", "--data"): NO_IMAGES, ("score", "--model"): NO_IMAGES, ("score", "--labels"): [*NO_CHOICE, "folders"],
    ("score", "--normal"): ["cat"], ("score", "--image-size"): [*NO_COUNT, "0", "33", "100000"],
    ("score", "--out"): [*NO_FILE, "a.txt"], ("score", "--picture"): [*NO_FILE, "a.jpg"],
    ("grid", "--out"): [*NO_FILE, "a.jpg", "images/i7.png"], ("eval", "--per-image"): [*NO_FILE, "images/i7.png"],
    ("eval", "--lpips-weights"): NO_FILE,
    ("train", "--config"): ["absent", "images", "images/i1.png", "/dev/zero", "/dev/null/x", LONG],
    ("train", "--option"): ["width", "=4", "nope=1", "beta=x", "latent_dim=4.5", LONG],
    ("eval", "--crop-border"): NO_COUNT, ("eval", "--pred-name"): ["rec", "{", "{}{}", "{0}", "{:4d}", "{x}"],
    ("eval", "--metrics"): [*NO_CHOICE, "psnr,", ",", "psnr;ssim"],
    ("train", "--val-fraction"): [*NO_NUMBER, "1"], ("train", "--ema"): [*NO_NUMBER, "0", "1"],
    ("train", "--lr"): [*NO_NUMBER, "0"], ("train", "--checkpoint-every"): [*NO_NUMBER, "0"],
    ("train", "--image-size"): [*NO_COUNT, "0", "33", "100000"],
    ("reconstruct", "--image-size"): [*NO_COUNT, "0", "33", "100000"], ("train", "--width"): [*NO_COUNT, "0", "5000"],
    ("sample", "--n"): [*NO_COUNT, "0", "1025", "99999999"], ("grid", "--n"): [*NO_COUNT, "0", "1025"],
    ("sample", "--class"): ["cat"], ("sample", "--temperature"): [*NO_NUMBER, "1e7"],
    **{("train", flag): NO_COUNT for flag in ("--adversarial-start", "--adversarial-ramp", "--warmup")},
}  # fmt: skip
# Where runs are read from, any folder will do: without runs in it, that is the error.
ANY_FOLDER = [
    (name, "--runs")
    for name in ("interpolate", "traverse", "reconstruct", "encode", "decode", "sample", "eval", "grid", "export",
                 "score", "models")
]  # fmt: skip


def options() -> dict[tuple[str, str], tuple[Any, OptionInfo]]:
    """(command, flag) -> the type of its values, without None, and what Typer knows of it."""
    found = {}
    for command in typer.main.get_command(app).commands.values():
        hints = get_type_hints(command.callback, include_extras=True)
        for name in inspect.signature(command.callback).parameters:
            if get_origin(hints[name]) is None:
                continue  # Typer's context
            kind, *infos = get_args(hints[name])
            if isinstance(infos[0], OptionInfo) and not infos[0].hidden:
                kinds = [each for each in get_args(kind) if each is not type(None)]
                names = [infos[0].default, *(infos[0].param_decls or ())]  # Typer takes the first as the default
                flags = [flag for flag in names if isinstance(flag, str) and flag.startswith("--")]
                flag = flags[0] if flags else f"--{name.replace('_', '-')}"
                found[command.name, flag] = (kinds[0] if kinds else kind, infos[0])
    return found


OPTIONS = options()


def invalid_values(key: tuple[str, str]) -> list[str]:
    kind, info = OPTIONS[key]
    if key in SPECIAL:
        return SPECIAL[key]
    if kind is int:
        return [*NO_COUNT, str(2**64)] if key[1] == "--seed" else [*NO_COUNT, "0"] if is_first(key) else FEW_COUNTS
    if kind is float:
        return NO_NUMBER if is_first(key) else FEW_NUMBERS
    if kind is str and "|" in (info.metavar or ""):
        return NO_CHOICE
    raise AssertionError(f"SPECIAL needs invalid values for {key}")


def is_first(key: tuple[str, str], alike: bool = True) -> bool:
    """Whether it is the command's first option, or first of those `alike`: they are parsed by their type alone."""
    kinds = [OPTIONS[key][0]] if alike else [kind for kind, _ in OPTIONS.values() if kind is not bool]
    others = (each for each, (kind, _) in OPTIONS.items() if each[0] == key[0] and kind in kinds)
    return key == next(each for each in others if not (alike and each in SPECIAL))


def refused(*args: str, status: tuple[int, ...] = (2,)) -> str:
    """Run `aecli`, which must fail; returns its message as plain text in one line."""
    result = invoke(*args)
    assert result.exit_code in status, (args, result.output)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if not line.startswith("Note: ")]
    assert lines[0].startswith(("Usage: ", "╭─ Error ", "Error: "))
    assert len(lines) <= 2 or not lines[0].startswith("Error: ")
    assert [char for char in result.stderr if not (char.isprintable() or char == "\n")] == []
    return " ".join(re.sub(r"[│╭╮╰╯─]", "", "\n".join(lines)).split())


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "key", [key for key, (kind, _) in OPTIONS.items() if kind is not bool and key not in ANY_FOLDER]
)
def test_invalid_values_are_refused_by_name_and_leave_nothing_behind(trained, key):
    command, flag = key
    before = listing(trained)
    for value in invalid_values(key):
        job = JOB_OF.get(key, JOBS[command])[: -2 if key == ("train", "--runs") else None]  # --out hides it
        # A meaningless value is wrong usage; the name of something that isn't there is a failure.
        message = refused(*job, flag, value, status=(1, 2) if NAMES_A_PLACE & set(invalid_values(key)) else (2,))
        named = value if len(value) < 100 else value[:100]
        assert flag in message or printable(named) in message, value
        assert len(message) < 1500, "nobody reads that"
        assert listing(trained) == before, value


@pytest.mark.parametrize("key", [key for key, (kind, _) in OPTIONS.items() if kind is not bool], ids=" ".join)
def test_an_empty_value_hints_at_a_variable_of_the_shell(trained, key):
    """`--out "$OUT"` without OUT would else write into the folder that the command runs in."""
    command, flag = key
    is_first_of_its_command = key == next(
        each for each in OPTIONS if each[0] == command and OPTIONS[each][0] is not bool
    )
    for spelled in ([flag, ""], [f"{flag}="]) if is_first_of_its_command else ([flag, ""],):
        message = fails(2, *JOB_OF.get(key, JOBS[command]), *spelled)
        assert f"{flag} ''" in message and "variable of the shell" in message
    assert sorted(path.name for path in trained.iterdir()) == ["images", "runs"]


def test_an_empty_model_to_train_hints_at_it_too(trained):
    assert "variable of the shell" in fails(2, "train", "", *TRAIN)


@pytest.mark.parametrize("key", [key for key, (kind, _) in OPTIONS.items() if kind is bool], ids=" ".join)
def test_a_flag_takes_no_value(trained, key):
    assert key[1] in FLAGS
    assert key[1] in refused(*JOBS[key[0]], f"{key[1]}=yes")


def test_what_a_recipe_switches_on_can_be_switched_off(trained):
    augmentations = {"flip", "turns", "resized-crops"}
    job = ["train", "resnet", "--recipe", "quick", "--data", "demo", "--width", "4", "--image-size", "32", "--dry-run"]
    assert all(ok_json(*job)["options"][each.replace("-", "_")] for each in augmentations)
    for flag in augmentations:
        options = ok_json(*job, f"--no-{flag}")["options"]
        assert {each for each in augmentations if not options[each.replace("-", "_")]} == {flag}
        assert f"--no-{flag}" in refused("train", "resnet", f"--{flag}", f"--no-{flag}")


def test_of_an_option_given_twice_the_last_one_counts(trained):
    """As everywhere: so that a wrapper's options can be overridden."""
    assert len(ok_json("grid", "--n", "3", "--n", "1", "--out", "g.png")["images"]) == 1
    assert fails(2, "sample", "--model", "vae", "--n", "1", "--n", "0").startswith("Error: --n 0")


@pytest.mark.parametrize(
    "args",
    [
        ["train", "vae", *TRAIN, "--val-data", "images"],
        ["train", "vae", *TRAIN, "-o", "width=8"],
        [*EVAL, "--lpips-weights", "w.pth"],
        [*EVAL, "--pred", "images"],
        ["sample", "--model", "vae", "--n", "1025", "--out", "sheet.png"],
    ],
    ids=["val-data", "width", "lpips-weights", "pred", "sheet"],
)
def test_options_that_contradict_each_other_are_refused(trained, args):
    fails(2, *args)
    assert sorted(path.name for path in trained.iterdir()) == ["images", "runs"]


@pytest.mark.parametrize("size", ["1", "13", str(10**20)])
def test_a_batch_may_be_larger_than_all_there_is(trained, size):
    ok("reconstruct", "--model", "ae", "--split", "all", "--batch-size", size, "--out", "out")
    assert len(pngs(trained / "out")) == 12
    assert ok_json(*EVAL, "--batch-size", size)["n"] == 12
    if size != "1":
        assert ok_json("train", "ae", *TRAIN, "--batch-size", size, "--epochs", "1", "--out", "run")["epochs"] == 1


def test_more_workers_than_there_is_work_are_as_many_as_there_is_work(trained):
    ok("reconstruct", "--model", "ae", "--workers", "1024", "--out", "out")
    assert ok_json(*EVAL, "--workers", "1024")["n"] == 12


# Outputs that are there already, as the README says.


@pytest.fixture
def occupied(trained):
    """A working folder whose outputs are there already."""
    for name in ("grid.png", "samples.png", "numbers.csv", "notes.txt"):
        (trained / name).write_text("mine")
    write_images(trained / "full", ["i7", "other"])
    return trained


FILES = [(["grid", "--out"], "grid.png"), (["sample", "--model", "vae", "--n", "2", "--out"], "samples.png"),
         ([*EVAL, "--per-image"], "numbers.csv")]  # fmt: skip


@pytest.mark.parametrize(("args", "name"), FILES, ids=["grid", "sample", "eval"])
def test_a_file_that_is_named_is_replaced_with_a_notice(occupied, args, name):
    assert f"Note: replacing {name}\n" in ok(*args, name).stderr
    assert (occupied / name).read_bytes() != b"mine"


@pytest.mark.parametrize(("args", "name"), FILES, ids=["grid", "sample", "eval"])
def test_of_a_link_that_is_named_the_link_is_replaced(occupied, args, name):
    (occupied / name).unlink()
    (occupied / name).symlink_to("notes.txt")
    ok(*args, name)
    assert (occupied / "notes.txt").read_text() == "mine" and not (occupied / name).is_symlink()


@pytest.mark.parametrize(("args", "name"), FILES, ids=["grid", "sample", "eval"])
@pytest.mark.parametrize("kind", ["pipe", "link to nowhere", "device", "folder"])
def test_what_is_no_file_is_never_replaced(occupied, args, name, kind):
    """Root could: that would be the end of /dev/null."""
    place = occupied / f"x-{name}"
    {"pipe": lambda: os.mkfifo(place), "link to nowhere": lambda: place.symlink_to("nowhere"),
     "device": lambda: place.symlink_to("/dev/null"), "folder": place.mkdir}[kind]()  # fmt: skip
    before = os.lstat(place)
    result = invoke(*args, place.name)
    assert result.exit_code == 1 and place.name in result.stderr and "replacing" not in result.stderr
    after = os.lstat(place)
    assert (after.st_mode, after.st_ino, after.st_mtime_ns) == (before.st_mode, before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("args", [["reconstruct", "--model", "ae"], ["sample", "--model", "vae", "--n", "2"]],
                         ids=["reconstruct", "sample"])  # fmt: skip
def test_a_folder_that_holds_something_needs_overwrite_and_gives_a_notice(occupied, args):
    before = (occupied / "full/i7.png").read_bytes()
    assert "--overwrite" in fails(1, *args, "--out", "full")
    assert (occupied / "full/i7.png").read_bytes() == before
    result = ok(*args, "--out", "full", "--overwrite")
    assert "Note: full already holds 2 files or folders: those of the same name are replaced\n" in result.stderr
    assert ((occupied / "full/i7.png").read_bytes() == before) == (args[0] == "sample")
    assert (occupied / "full/other.png").exists()


# Never over what is read


@pytest.mark.parametrize("out", ["images", "./images/../images", "link"])
def test_reconstructions_never_take_the_place_of_what_they_are_made_of(workplace_with_run, out):
    (workplace_with_run / "link").symlink_to("images")
    before = {path: path.read_bytes() for path in (workplace_with_run / "images").rglob("*.png")}
    for data in (["--data", "images"], []):
        message = fails(1, "reconstruct", "--model", "ae", *data, "--out", out, "--overwrite")
        assert "--out" in message and "one of the input files" in message
    assert {path: path.read_bytes() for path in (workplace_with_run / "images").rglob("*.png")} == before


def test_reconstructions_among_their_images_are_not_reconstructed_over_themselves(workplace_with_run):
    args = ["reconstruct", "--model", "ae", "--data", "images", "--out", "images/out"]
    ok(*args)
    before = {path: path.read_bytes() for path in (workplace_with_run / "images").rglob("*.png")}
    assert "1 output of aecli left out: out/" in ok(*args, "--overwrite").stderr
    assert {path: path.read_bytes() for path in (workplace_with_run / "images").rglob("*.png")} == before


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [(["grid", "--data", "images", "--out", "images/i1.png"], 1, "one of the input files"),
     ([*EVAL, "--per-image", "images/i1.png"], 2, "a .csv or .json file"),
     ([*EVAL, "--pred", "more.zip", "--per-image", "more.zip"], 2, "a .csv or .json file")],
    ids=["grid", "eval", "zip"],
)  # fmt: skip
def test_no_output_takes_the_place_of_an_input(workplace_with_run, args, status, said):
    shutil.make_archive("more", "zip", "images")
    target = workplace_with_run / args[-1]
    before = target.read_bytes()
    assert said in fails(status, *args)
    assert target.read_bytes() == before


@pytest.fixture
def workplace_with_run(workplace):
    ok("train", "ae", *TRAIN, "--epochs", "1", "--quiet")
    return workplace
