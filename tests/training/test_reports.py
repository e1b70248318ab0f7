"""Whatever ends the iterator of reports, at one of them or at work: the run is saved, and goes on bit for bit."""

import itertools
import os
import random
import signal
import subprocess
import sys
import threading

import pytest

from aecli.configs import TrainConfig
from aecli.errors import OutputError, TrainingError
from aecli.runs import checkpoints
from aecli.runtime import interrupts
from aecli.training import checkpointing, loop, reports, sync
from aecli.training.events import EpochReport, Finished, Started, StepReport
from tests.support.flows import SMALL
from tests.support.interrupts import interrupted_at
from tests.support.processes import end
from tests.support.ranks import begin_ranks, run_ranks
from tests.support.trained import SIZE, assert_same_run, rows
from tests.training.test_loop import run
from tests.training.test_ranks import OPTIONS

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def config(config):
    return config.replace(epochs=2, batch_size=5)


@pytest.fixture
def every_step(monkeypatch):
    """Have every step reported."""
    monkeypatch.setattr(sync, "SYNC_INTERVAL_SECONDS", 0.0)


class Mine(Exception):
    """An exception of the caller's."""


def throw(training):
    with pytest.raises(Mine):
        training.throw(Mine())


WAYS = {
    "close": lambda training: training.close(),
    "drop": lambda _: None,  # the caller drops it in any case
    "throw": throw,
    "end of Python": lambda _: reports._close_all(),
}


def position(folder):
    """Finished epochs, and batches of the next one, that are saved."""
    if not (folder / "last.safetensors").exists():
        return 0, 0
    counters = checkpoints.read_document(folder / "last.safetensors")["clock"]
    return counters["epoch"], counters["batch"]


def require_free(folder):
    """Nothing is locked or half written."""
    assert not [path for path in folder.parent.rglob("*") if path.name.startswith(".")]


def progress_of(report):
    """What `position` must be after a report; None where it tells of no progress."""
    if isinstance(report, StepReport):
        return report.epoch - 1, report.batch
    return (report.epoch, 0) if isinstance(report, EpochReport) else None


def leave_everywhere(config, ways):
    """Begin again and again, leaving at the first report of progress, until all is done; returns where that was."""
    folder, left = config.run.out, [(0, 0)]
    for way in itertools.cycle(ways):
        training = loop.train(config)
        for report in training:
            if isinstance(report, Started):
                assert (report.epochs_done, report.batches_done) == left[-1]
            if progress_of(report) or isinstance(report, Finished):
                break
        way(training)
        del training
        require_free(folder)
        if isinstance(report, Finished):
            assert report.was_finished
            return left[1:]
        left.append(progress_of(report))
        assert position(folder) == left[-1]
        assert left[-1][0] == (len(rows(folder)) if left[-1][0] else 0)


def test_left_in_all_ways_at_all_reports_of_progress(config, tmp_path, every_step):
    config = config.replace(model="ae", ema=0.9)
    run(config.replace(out=tmp_path / "runs/whole"))
    left = leave_everywhere(config.replace(out=tmp_path / "runs/parts"), WAYS.values())
    batches = max(batch for _, batch in left)
    steps = range(1, batches + 1)
    assert batches > 1
    assert left == [*((0, step) for step in steps), (1, 0), *((1, step) for step in steps), (2, 0)]
    assert_same_run(tmp_path / "runs/whole", tmp_path / "runs/parts")


def test_a_prior_is_left_at_all_reports_of_progress(own, every_step):
    config = TrainConfig("prior", autoencoder="vae", data="images", val_fraction=0.3, image_size=SIZE, batch_size=9,
                         options=SMALL, device="cpu", epochs=2, lr=1e-3, out=own / "new/whole")  # fmt: skip
    run(config)
    assert leave_everywhere(config.replace(out=own / "new/parts"), WAYS.values()) == [(0, 1), (1, 0), (1, 1), (2, 0)]
    assert_same_run(own / "new/whole", own / "new/parts")


def test_left_before_there_is_anything_to_save(config, tmp_path):
    config = config.replace(out=tmp_path / "runs/mine", cache="off")
    for count in itertools.count(1):
        training = loop.train(config)
        left = [next(training) for _ in range(count)][-1]
        training.close()
        require_free(tmp_path / "runs/mine")
        assert not (tmp_path / "runs/mine/last.safetensors").exists()
        if isinstance(left, Started):
            break
        assert not (tmp_path / "runs").exists()
    assert count > 1
    loop.train(config).close()  # has not begun
    assert isinstance(run(config)[1], Finished)


def test_an_exception_in_the_loop_saves_while_its_traceback_is_kept(config, tmp_path):
    def mine():
        for report in loop.train(config.replace(out=tmp_path / "runs/mine")):
            if isinstance(report, StepReport):
                raise Mine

    with pytest.raises(Mine):
        mine()
    assert position(tmp_path / "runs/mine") == (0, 1)
    require_free(tmp_path / "runs/mine")


def test_what_keeps_the_run_from_being_saved_is_raised(config, tmp_path, every_step, monkeypatch):
    def full(*_arguments):
        raise OutputError("the disk is full")

    spoilt = (sync.NonFiniteDetector, "first_failure", lambda _: ("loss", 1))
    for name, place, kind in (("full", (checkpoints, "save", full), OutputError), ("spoilt", spoilt, TrainingError)):
        training = loop.train(config.replace(out=tmp_path / name))
        next(report for report in training if isinstance(report, StepReport))
        with monkeypatch.context() as patch:
            patch.setattr(*place)
            with pytest.raises(kind):
                training.close()
        assert not (tmp_path / name / "last.safetensors").exists()
        require_free(tmp_path / name)


class TestInterruptedAtWork:
    def interrupt(self, config, number, in_setup=False):
        """Train; returns whether it was interrupted, at the nth call, of those after Started by default."""
        training = loop.train(config)
        try:
            report = None if in_setup else next(each for each in training if isinstance(each, Started | Finished))
            with interrupted_at(number) as names:
                report = [report, *training][-1]
        except KeyboardInterrupt:
            assert len(names) >= number
            require_free(config.run.out)
            return True
        assert isinstance(report, Finished) and len(names) < number
        return False

    def interrupt_until_finished(self, config, numbers):
        """Begin again and again, each time interrupted at the next of `numbers`; returns how often."""
        return next(count for count, number in enumerate(numbers) if not self.interrupt(config, number))

    def test_at_places_further_and_further(self, config, tmp_path):
        run(config.replace(out=tmp_path / "runs/whole"))
        parts = config.replace(out=tmp_path / "runs/parts")
        assert self.interrupt(parts, 600, in_setup=True)
        assert self.interrupt_until_finished(parts, itertools.count(250, 300)) >= 3
        assert_same_run(tmp_path / "runs/whole", tmp_path / "runs/parts")

    @pytest.mark.soak
    @pytest.mark.parametrize("seed", range(20))
    def test_at_random_places(self, config, tmp_path, seed, capsys):
        chance = random.Random(seed)
        run(config.replace(out=tmp_path / "runs/whole"))
        parts = config.replace(out=tmp_path / "runs/parts")
        count = 5
        assert all(self.interrupt(parts, chance.randrange(1, 1500), in_setup=True) for _ in range(count))
        count += self.interrupt_until_finished(parts, (chance.randrange(1, 1200) for _ in itertools.count()))
        assert_same_run(tmp_path / "runs/whole", tmp_path / "runs/parts")
        with capsys.disabled():
            print(f"\n{count} interrupts")

    def test_the_step_ends_and_a_second_one_while_saving_leaves_at_once(self, config, tmp_path, monkeypatch):
        run(config.replace(out=tmp_path / "runs/whole"))
        config = config.replace(out=tmp_path / "runs/mine")
        real_step, real_save, steps = loop.train_step, checkpoints.save, []

        def step(*arguments):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)  # an echo
            real_step(*arguments)
            steps.append(1)

        def save(*arguments):
            monkeypatch.setattr(interrupts, "_ECHO_SECONDS", 0.0)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("goes on")

        for is_twice in (False, True):
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(loop, "train_step", step)
                patch.setattr(checkpointing.checkpoints, "save", save if is_twice else real_save)
                list(loop.train(config))
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            assert position(config.run.out) == (0, 1)
            require_free(config.run.out)
        assert len(steps) == 2
        run(config)
        assert_same_run(tmp_path / "runs/whole", tmp_path / "runs/mine")

    def test_a_handler_of_the_callers_stays_and_what_it_tears_is_not_saved(self, config, tmp_path, monkeypatch):
        run(config.replace(out=tmp_path / "runs/whole"))
        config = config.replace(out=tmp_path / "runs/mine")
        training = loop.train(config)
        next(report for report in training if isinstance(report, StepReport))
        training.close()

        def mine(_number, _frame):
            raise Mine

        real = loop.train_step

        def torn(images, *arguments):
            real(images, *arguments)
            signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(loop, "train_step", torn)
        before = signal.signal(signal.SIGINT, mine)
        try:
            with pytest.raises(Mine):
                list(loop.train(config))
        finally:
            signal.signal(signal.SIGINT, before)
        monkeypatch.undo()
        assert position(config.run.out) == (0, 1)
        run(config)
        assert_same_run(tmp_path / "runs/whole", tmp_path / "runs/mine")

    def test_another_thread_trains_without_signals(self, config, tmp_path):
        found = []
        thread = threading.Thread(target=lambda: found.extend(loop.train(config.replace(out=tmp_path / "mine"))))
        thread.start()
        thread.join()
        assert isinstance(found[-1], Finished)


SCRIPT = """if True:
    import sys
    import aecli
    from pathlib import Path
    from aecli.training.events import StepReport

    def config(out, cache="auto"):
        return aecli.TrainConfig("vae", data="images", val_fraction=0.3, image_size=32, epochs=90, batch_size=3,
                                 options={"width": 4}, device="cpu", compile="off", cache=cache, out=Path(out))

    begun = aecli.train(config("begun", "off"))
    next(begun)
    training = aecli.train(config("training"))
    for report in training:
        if isinstance(report, StepReport):
            if sys.argv[1] == "raise":
                raise SystemExit(7)
            break
"""


@pytest.mark.parametrize(
    ("how", "status"),
    [pytest.param("end", 0, marks=pytest.mark.soak), pytest.param("raise", 7, marks=pytest.mark.slow)],
)
def test_an_iterator_left_at_the_end_of_a_script_is_saved_without_a_word(workplace, how, status):
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")
    assert position(workplace / "training") > (0, 0)
    require_free(workplace / "training")


def _leave_in_rank_1():
    from aecli.cli import live

    real = live._TrainingView.__call__

    def leave(view, report):
        real(view, report)
        if os.environ["RANK"] == "1" and isinstance(report, StepReport):
            raise SystemExit(7)

    live._TrainingView.__call__ = leave


@pytest.mark.slow
def test_where_one_of_two_processes_leaves_both_have_saved(workplace):
    arguments = ["train", "vae", *OPTIONS, "--width", "4", "--batch-size", "5", "--epochs", "2", "--out"]
    assert run_ranks(workplace, [*arguments, "whole"], 2)[0] == [0, 0]
    processes = begin_ranks(workplace, [*arguments, "parts"], 2, before=_leave_in_rank_1)
    assert [end(process) for process in processes] == [130, 7]
    assert (0, 0) < position(workplace / "parts") < (2, 0)
    assert run_ranks(workplace, [*arguments, "parts"], 2)[0] == [0, 0]
    assert_same_run(workplace / "whole", workplace / "parts")
