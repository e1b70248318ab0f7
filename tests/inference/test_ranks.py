"""Several processes reconstruct and sample: the same files as one process, to the last byte; failures reported once."""

import os
import signal
import time
from functools import partial

import pytest

from tests.support.processes import end, wait_for
from tests.support.ranks import begin_ranks, run_ranks, stall
from tests.support.trained import NAMES, write_images

WRITE = ("aecli.inference.reconstruct", "write_bytes")


@pytest.fixture
def place(trained):
    write_images(trained / "mixed", [f"a{number}" for number in range(5)], 40, 40)
    write_images(trained / "mixed", ["a2", "sub/b", "sub/c"], 33, 40)
    return trained


def run(place, size, *arguments, out):
    """What is said, without the name of `out`, and all files of it by name."""
    statuses, stdout, stderr = run_ranks(place, [*arguments, "--out", out], size)
    folder = place / out
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()] if folder.is_dir() else [folder]
    contents = {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
    assert len(set(statuses)) == 1, stderr
    return statuses[0], stdout.replace(out, "OUT"), stderr.replace(out, "OUT"), contents


class TestReconstruct:
    @pytest.mark.parametrize(
        ("size", "options"),
        [(2, ["--native"]), (3, ["--batch-size", "2"]), (2, ["--json", "--workers", "3"])],
    )
    def test_the_same_files_as_one_process(self, place, size, options):
        command = ["reconstruct", "--model", "vae", "--data", "mixed", *options]
        alone = run(place, 1, *command, out="alone")
        assert alone[0] == 0 and len(alone[3]) == 7
        assert run(place, size, *command, out="shared") == alone

    def test_of_fewer_images_than_processes(self, place):
        write_images(place / "one", ["a"])
        command = ["reconstruct", "--model", "vae", "--data", "one"]
        assert run(place, 3, *command, out="shared") == run(place, 1, *command, out="alone")

    def test_unreadable_images_are_named_in_the_order_of_one_process(self, place):
        for name in ("a4", "a0", "sub/b", "a1", "sub/c"):
            (place / "mixed" / f"{name}.png").write_bytes(name.encode())
        command = ["reconstruct", "--model", "vae", "--data", "mixed", "--batch-size", "1", "--json"]
        alone = run(place, 1, *command, out="alone")
        assert alone[0] == 1 and sorted(alone[3]) == ["a2.png", "a3.png"]
        assert alone[2].startswith("Error: 5 images could not be read") and alone[2].count("\n") == 1
        assert run(place, 2, *command, out="shared") == alone

    def test_a_folder_that_holds_something_is_refused_once_and_written_over_once(self, place):
        command = ["reconstruct", "--model", "vae", "--data", "images", "--batch-size", "2"]
        (place / "out").mkdir()
        (place / "out" / "mine.txt").write_text("mine")
        statuses, stdout, stderr = run_ranks(place, [*command, "--out", "out"], 3)
        assert (statuses, stdout, stderr.count("--overwrite")) == ([1] * 3, "", 1) and stderr.count("\n") == 2
        assert [path.name for path in (place / "out").iterdir()] == ["mine.txt"]
        status, stdout, stderr, files = run(place, 3, *command, "--overwrite", out="out")
        assert (status, stdout) == (0, "wrote 12 reconstructions to OUT\n")
        assert [line.split()[0] for line in stderr.splitlines()] == ["Note:", "Next:"]
        assert sorted(files) == sorted(["mine.txt", *(f"{name}.png" for name in NAMES)])

    def test_what_is_read_is_not_written_over(self, place):
        before = {file: file.read_bytes() for file in (place / "mixed").rglob("*.png")}
        command = ["reconstruct", "--model", "vae", "--data", "mixed", "--out", "mixed", "--overwrite", "--quiet"]
        statuses, _, stderr = run_ranks(place, command, 2)
        assert statuses == [1, 1] and stderr.count("\n") == 2 and "is one of the input files" in stderr
        assert {file: file.read_bytes() for file in (place / "mixed").rglob("*.png")} == before

    def test_a_failure_of_one_process_ends_all_with_its_message(self, place):
        command = ["reconstruct", "--model", "vae", "--data", "images", "--batch-size", "1", "--out", "out", "--quiet"]
        statuses, _, said = run_ranks(place, command, 3, before=_fill_the_disk_of_the_second)
        assert statuses == [1, 1, 1]
        assert said.startswith("Error: out/") and "the disk is full" in said and said.count("\n") == 1
        assert len(list((place / "out").rglob("*.png"))) <= 8, "what had not been begun was left"

    def test_one_that_is_killed_ends_all(self, place):
        command = ["reconstruct", "--model", "vae", "--data", "images", "--batch-size", "1", "--out", "out", "--quiet"]
        processes = begin_ranks(place, command, 2, before=partial(stall, 1, *WRITE))
        wait_for(place / "stalled")
        os.kill(processes[1].pid, signal.SIGKILL)
        assert [end(process) for process in processes] == [1, -signal.SIGKILL]
        assert (place / "stderr.txt").read_text().count("Error: another of the processes") == 1


def _fill_the_disk_of_the_second():
    from aecli.errors import OutputError
    from aecli.inference import reconstruct

    original = reconstruct.write_bytes

    def write(path, content):
        if os.environ["RANK"] == "1":
            raise OutputError(f"{path} can't be written: the disk is full")
        time.sleep(0.2)  # so that the second gets something to do
        original(path, content)

    reconstruct.write_bytes = write


class TestSample:
    @pytest.mark.parametrize(
        ("size", "out", "n"),
        [(2, ("alone", "shared"), "150"), (2, ("alone.png", "shared.png"), "150"), (3, ("alone", "shared"), "5")],
    )
    def test_the_same_files_as_one_process(self, place, size, out, n):
        command = ["sample", "--model", "vae", "--prior", "gaussian", "--n", n, "--seed", "4", "--quiet"]
        alone = run(place, 1, *command, out=out[0])
        assert alone[:3] == (0, f"wrote {n} samples to OUT\n", "") and len(alone[3]) in (1, int(n))
        assert run(place, size, *command, out=out[1]) == alone

    def test_a_replaced_file_is_reported_once(self, place):
        (place / "sheet.png").write_bytes(b"old")
        statuses, _, stderr = run_ranks(
            place, ["sample", "--model", "vae", "--n", "3", "--prior", "mixture", "--out", "sheet.png"], 2
        )
        assert (statuses, stderr) == ([0, 0], "Note: replacing sheet.png\n")

    def test_a_model_without_a_prior_is_refused_once(self, place):
        statuses, stdout, stderr = run_ranks(place, ["sample", "--model", "ae", "--prior", "normal", "--out", "out"], 2)
        assert (statuses, stdout, stderr.count("Error: ")) == ([1, 1], "", 1)
        assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("command", "said"), [(["grid", "--n", "2", "--out", "grid.png"], "drew 2 images"), (["models"], "inference")]
)
def test_commands_that_share_no_work_run_in_rank_0(place, command, said):
    for file in place.glob("runs/*/*"):
        os.utime(file, (0, 0))  # how long ago a run changed says the same all day
    alone = run_ranks(place, command, 1)
    files = {file.name for file in place.iterdir()}
    (place / "grid.png").unlink(missing_ok=True)
    shared = run_ranks(place, command, 3)
    assert (shared[0], *shared[1:]) == ([0] * 3, *alone[1:])
    assert {file.name for file in place.iterdir()} == files
