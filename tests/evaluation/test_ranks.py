"""Several processes measure images: report and CSV as of one process, to the last byte; failures reported once."""

import json
import os
import signal
import time
from functools import partial

import numpy as np
import pytest

from tests.support.images import picture, save_image, truncate
from tests.support.processes import end, wait_for
from tests.support.ranks import begin_ranks, fail_ranks, run_ranks, stall


@pytest.fixture
def place(tmp_path):
    """Eleven images of three sizes, and two predictions of them."""
    for seed in range(11):
        pixels = picture(*[(40, 44), (36, 52), (33, 33)][seed % 3], seed)
        save_image(tmp_path / "gt" / f"{seed:02}.png", pixels)
        save_image(tmp_path / "low" / f"{seed:02}.jpg", pixels, quality=10)
        save_image(tmp_path / "high" / f"{seed:02}.jpg", pixels, quality=70)
    save_image(tmp_path / "low" / "03.jpg", picture(40, 44, 3), quality=20)
    return tmp_path


MEASURE = ("aecli.evaluation.measuring:PairMeasurer", "__call__")
EVAL = ["eval", "--gt", "gt", "--pred", "low", "--pred", "high", "--batch-size", "2", "--workers", "2"]


def measure(place, size, *options):
    """What is printed, on stdout and as notes, and what is in the CSV."""
    (place / "each.csv").unlink(missing_ok=True)
    statuses, stdout, stderr = run_ranks(place, [*EVAL, "--per-image", "each.csv", *options], size)
    assert statuses == [0] * size, stderr
    return stdout, stderr, (place / "each.csv").read_bytes()


class TestTheSameReport:
    @pytest.mark.parametrize(
        ("size", "options"), [(2, ["--json"]), (3, ["--metrics", "ssim,psnr", "--batch-size", "64"])]
    )
    def test_as_of_one_process(self, place, size, options):
        alone = measure(place, 1, *options)
        assert len(alone[2].splitlines()) == 1 + 2 * 11
        assert measure(place, size, *options) == alone

    def test_without_what_can_not_be_measured(self, place):
        """In the order in which one process meets it, whether in names, headers or pixels."""
        for name in ("low/09.jpg", "low/01.jpg", "high/06.jpg", "low/00.jpg", "high/07.jpg", "low/03.jpg"):
            truncate(place / name)
        truncate(place / "gt" / "04.png")
        (place / "high" / "08.jpg").write_bytes(b"no picture")
        save_image(place / "high" / "02.jpg", picture(20, 33))
        (place / "low" / "05.jpg").unlink()
        options = ["--json", "--on-mismatch", "skip", "--batch-size", "1", "--workers", "1"]
        alone = measure(place, 1, *options)
        found = json.loads(alone[0])
        assert (found["n"], len(found["unpaired"])) == (1, 10) and alone[1].count("Note: ") == 1
        assert measure(place, 3, *options) == alone

    def test_with_predictions_resized(self, place):
        save_image(place / "high" / "02.jpg", picture(20, 33))
        alone = measure(place, 1, "--json", "--on-mismatch", "resize")
        assert "1 of 11 of high" in alone[0]
        assert measure(place, 2, "--json", "--on-mismatch", "resize") == alone

    def test_with_all_that_was_converted(self, place):
        for number in (2, 5, 9):
            pixels = picture(33, 33, number)
            save_image(place / "gt" / f"{number:02}.png", np.dstack([pixels, np.full((33, 33), 99 + number, np.uint8)]))
            save_image(place / "low" / f"{number:02}.jpg", pixels)
            save_image(place / "high" / f"{number:02}.jpg", pixels)
        alone = measure(place, 1, "--json", "--batch-size", "1")
        found = json.loads(alone[0])["conversions"]
        assert found == {"gt": {"background": {"images": 3, "names": ["02.png", "05.png", "09.png"]}},
                         "low": {}, "high": {}}  # fmt: skip
        assert measure(place, 2, "--json", "--batch-size", "1") == alone

    def test_of_fewer_images_than_processes(self, place):
        for folder in ("gt", "low", "high"):
            for file in sorted((place / folder).iterdir())[1:]:
                file.unlink()
        assert measure(place, 3, "--json") == measure(place, 1, "--json")

    def test_is_returned_in_all_of_them(self, place):
        """Who calls the library gets the report in every process, also when it calls twice."""
        assert run_ranks(place, ["--version"], 2, before=_evaluate_twice)[0] == [0, 0]
        first, second = ((place / f"report-{rank}.json").read_bytes() for rank in range(2))
        assert first == second and json.loads(first)["n"] == 11
        assert [(place / f"heard-{rank}.txt").read_text() for rank in range(2)] == ["measuring 11", ""]


def _evaluate_twice():
    from aecli.configs import EvalConfig
    from aecli.evaluation.paired import evaluate

    rank, heard = os.environ["RANK"], []
    config = EvalConfig(gt="gt", pred=("low",), metrics=("psnr",), batch_size=2)
    once, report = evaluate(config), evaluate(config, heard.append)
    assert once.to_json() == report.to_json()
    with open(f"report-{rank}.json", "w") as file:
        json.dump(report.to_json(), file)
    with open(f"heard-{rank}.txt", "w") as file:
        file.write(f"{heard[-1].task} {heard[-1].total}" if heard else "")


class TestFailures:
    def fail(self, place, size, *options):
        return fail_ranks(place, [*EVAL, "--quiet", *options], size)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--pred", "nowhere"], "nowhere"),
            (["--pred", "low=high"], "already used"),
            (["--per-image", "folder.csv"], "--per-image folder.csv is a folder"),
            (["--per-image", "low/00.jpg"], "a .csv or .json file"),
        ],
    )
    def test_in_what_was_asked(self, place, options, said):
        (place / "folder.csv").mkdir()
        assert said in self.fail(place, 2, *options)

    def test_in_sizes_are_those_of_one_process(self, place):
        for number in (10, 2, 7):
            save_image(place / "high" / f"{number:02}.jpg", picture(20, 33))
        assert self.fail(place, 3) == self.fail(place, 1)

    def test_in_pixels_are_those_of_one_process(self, place):
        """Images are measured in batches by size: the first batch with a truncated one is reported, whoever has it."""
        for name in ("low/04.jpg", "high/06.jpg", "low/10.jpg"):
            truncate(place / name)
        said = self.fail(place, 1)
        assert "'04.jpg'" in said
        shared = run_ranks(place, [*EVAL, "--quiet", "--workers", "1"], 2, before=_be_slow_with_the_first)
        assert shared == ([1, 1], "", said)

    def test_when_nothing_is_left(self, place):
        for file in (place / "low").iterdir():
            truncate(file)
        options = ["--on-mismatch", "skip", "--per-image", "each.csv"]
        assert self.fail(place, 2, *options) == self.fail(place, 1, *options)
        assert not (place / "each.csv").exists()

    def test_machines_that_see_different_images(self, place):
        for name in ("gt/00.png", "low/00.jpg", "high/00.jpg"):
            save_image(place / "elsewhere" / name, picture(40, 44))
        statuses, _, said = run_ranks(place, EVAL, 2, before=_move_the_second)
        assert (statuses, said.count("Error: ")) == ([1, 1], 1) and "not the same on all machines" in said

    @pytest.mark.parametrize("killed", [0, 1])
    def test_one_that_is_killed_ends_all(self, place, killed):
        processes = begin_ranks(place, [*EVAL, "--json"], 2, before=partial(stall, killed, *MEASURE))
        wait_for(place / "stalled")
        os.kill(processes[killed].pid, signal.SIGKILL)
        statuses = [end(process) for process in processes]
        assert (statuses[killed], statuses[1 - killed]) == (-signal.SIGKILL, 1)
        assert (place / "stdout.txt").read_text() == ""
        assert (place / "stderr.txt").read_text().count("Error: another of the processes") == 1


def _be_slow_with_the_first():
    """Have the others decode their truncated images before."""
    from aecli.evaluation import decoding

    original = decoding.decode

    def decode(image, *arguments, **options):
        if image.name == "04.jpg":
            time.sleep(0.5)
        return original(image, *arguments, **options)

    decoding.decode = decode


def _move_the_second():
    if os.environ["RANK"] == "1":
        os.chdir("elsewhere")


def test_workers_are_shared_by_the_processes_of_a_machine(tmp_path):
    assert run_ranks(tmp_path, ["--version"], 3, before=_count_workers)[0] == [0] * 3


def _count_workers():
    from aecli.runtime.threads import worker_count

    os.sched_getaffinity = lambda pid: set(range(7))
    assert (worker_count(None), worker_count(5)) == (2, 5)
    os.sched_getaffinity = lambda pid: {0}
    assert worker_count(None) == 1


def test_what_is_gathered_is_measured_by_all(place):
    """That the report is the same would be no wonder if one process did it all."""
    assert run_ranks(place, [*EVAL, "--quiet"], 2, before=_note_batches)[0] == [0, 0]
    measured = [len((place / f"measured-{rank}").read_text()) for rank in range(2)]
    assert min(measured) >= 1 and sum(measured) == 3 * 2


def _note_batches():
    from aecli.evaluation.measuring import PairMeasurer

    original = PairMeasurer.__call__

    def measure(*arguments):
        with open(f"measured-{os.environ['RANK']}", "a") as file:
            file.write("x")
        time.sleep(0.2)
        return original(*arguments)

    PairMeasurer.__call__ = measure
