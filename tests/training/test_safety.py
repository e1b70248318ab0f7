"""What keeps a run safe: one process a folder, checkpoints in time, non-finite steps, writes that fail."""

import os
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from aecli.errors import ConfigError, DataError, OutputError, TrainingError
from aecli.progress import Notice
from aecli.runs import checkpoints
from aecli.runs.folder import RunFolder
from aecli.storage.locks import this_process
from aecli.training import checkpointing, loop, sync
from aecli.training.events import Finished, Started, StepReport
from aecli.training.inputs import loaders
from aecli.training.objectives import Objective
from tests.support.trained import assert_same_run, rows
from tests.training.test_loop import run

pytestmark = pytest.mark.usefixtures("no_pictures")


def until(reports, kind):
    return next(report for report in reports if isinstance(report, kind))


class TestOneProcessAFolder:
    def test_a_folder_in_use_is_refused_with_its_holder(self, config, tmp_path):
        first = loop.train(config.replace(out=tmp_path / "mine"))
        until(first, Started)
        host, _, pid = this_process().rpartition("-")
        for also in ({}, {"restart": True}, {"lr": 0.5}):
            with pytest.raises(
                OutputError, match=f"mine is being trained by process {pid} on {host}\nhint: close.*--out"
            ):
                run(config.replace(out=tmp_path / "mine", **also))
        assert isinstance(list(first)[-1], Finished)
        run(config.replace(out=tmp_path / "whole"))
        assert_same_run(tmp_path / "whole", tmp_path / "mine")

    def test_the_same_command_is_refused_and_another_begins_another_folder(self, config):
        first = loop.train(config)
        until(first, Started)
        with pytest.raises(OutputError, match="vae is being trained by process"):
            run(config)
        _, end = run(config.replace(seed=5, epochs=1))
        assert end.run.path.name == "vae-2"
        first.close()

    def test_a_folder_that_another_process_is_just_beginning_is_left_to_it(self, config):
        first = loop.train(config.replace(cache="off"))
        next(first)  # decoding: nothing says yet what run this will be
        assert not RunFolder(config.run.runs / "vae").exists()
        reports, end = run(config.replace(seed=5, epochs=1))
        assert end.run.path.name == "vae-2"
        assert any(f"beginning {end.run.path}" in report.text for report in reports if isinstance(report, Notice))
        assert list(first)[-1].run.path.name == "vae"

    def test_what_a_killed_process_leaves_blocks_nobody_and_goes(self, config, tmp_path):
        folder = tmp_path / "mine"
        run(config.replace(out=folder, epochs=1))
        (folder / "previews").mkdir()
        (folder / ".aecli-run.lock").write_text("host-77")
        left = [folder / ".aecli-host-77-8.tmp", folder / "previews" / ".aecli-host-77-8.tmp"]
        for half_written in left:
            half_written.mkdir()
            (half_written / "last.safetensors").write_text("half")
        theirs = folder / "pictures" / f".aecli-{this_process()}-7.tmp"  # somebody reconstructs into the run's folder
        theirs.mkdir(parents=True)
        run(config.replace(out=folder, epochs=2))
        assert [path for path in folder.rglob("*") if path.name.startswith(".")] == [theirs]

    def test_a_restart_killed_before_it_began_can_be_repeated(self, config, tmp_path, monkeypatch):
        config = config.replace(out=tmp_path / "mine", epochs=1)
        run(config)
        monkeypatch.setattr(RunFolder, "write_config", lambda folder, config: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(config.replace(restart=True))
        monkeypatch.undo()
        assert not (tmp_path / "mine" / "last.safetensors").exists()
        _, end = run(config)
        assert end.epochs == 1 and not end.was_finished

    def test_a_run_killed_before_it_began_is_begun(self, config, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / ".aecli-run.lock").write_text("x-1")
        (tmp_path / "mine" / ".aecli-x-1-2.tmp").mkdir()
        (config.run.runs / "vae").mkdir(parents=True)
        (config.run.runs / "vae" / ".aecli-run.lock").write_text("x-1")
        _, end = run(config.replace(out=tmp_path / "mine", epochs=1))
        assert end.run.path.name == "mine"
        _, end = run(config.replace(epochs=1))
        assert end.run.path.name == "vae"

    def test_a_finished_run_that_cannot_be_written_says_that_it_is_finished(self, config, tmp_path, monkeypatch):
        run(config.replace(out=tmp_path / "mine", epochs=1))
        real = os.open

        def read_only(path, flags, *more, **named):
            if flags & os.O_CREAT:
                raise OSError(30, "Read-only file system", os.fspath(path))
            return real(path, flags, *more, **named)

        monkeypatch.setattr(os, "open", read_only)
        _, end = run(config.replace(out=tmp_path / "mine", epochs=1))
        assert end.was_finished


class TestCheckpointsInTime:
    def test_they_are_taken_in_mid_validation_too(self, config, tmp_path, monkeypatch):
        """Steps and validation batches alike: the state on the disk is never older than the time given."""
        run(config.replace(out=tmp_path / "whole"))
        saved = []
        real = checkpoints.save

        def watched(path, tensors, document):
            if path.name == "last.safetensors":
                saved.append((document["clock"]["epoch"], document["clock"]["batch"]))
            real(path, tensors, document)

        monkeypatch.setattr(checkpoints, "save", watched)
        monkeypatch.setattr(sync, "SYNC_INTERVAL_SECONDS", 0.0)
        run(config.replace(out=tmp_path / "often", checkpoint_every=1e-9))
        last_batch = max(batch for _, batch in saved)
        assert [epoch for epoch, batch in saved if batch == last_batch].count(0) >= 2  # after the step, in validation
        assert_same_run(tmp_path / "whole", tmp_path / "often")

    def test_the_time_may_change_within_a_run(self, config, tmp_path):
        run(config.replace(out=tmp_path / "mine", epochs=1))
        _, end = run(config.replace(out=tmp_path / "mine", epochs=2, checkpoint_every=1.0))
        assert end.epochs == 2

    def test_a_quick_run_is_saved_after_its_first_epoch_and_its_last(self, config, tmp_path, monkeypatch):
        kept = []
        real = checkpointing.Checkpointer.save
        monkeypatch.setattr(
            checkpointing.Checkpointer,
            "save",
            lambda each: (kept.append(each.session.state.counters.epoch), real(each)),
        )
        run(config.replace(out=tmp_path / "mine", epochs=4))
        assert kept == [1, 4]

    @pytest.mark.parametrize("minutes", [0, -1, float("inf"), float("nan"), "10", True])
    def test_what_is_no_time_is_refused(self, config, minutes):
        with pytest.raises(ConfigError, match="--checkpoint-every"):
            config.replace(checkpoint_every=minutes)


class TestNonFiniteSteps:
    """The report's VAE, but for one step: its loss, or its gradient alone, is not finite there."""

    @pytest.fixture
    def wrong_at(self, monkeypatch):
        real = Objective.model_loss

        def spoil(step, what, value=float("nan"), ever_after=False):
            taken = 0

            def model_loss(objective, prediction, done):
                nonlocal taken
                losses = real(objective, prediction, done)
                taken += 1
                if not (taken == step or (ever_after and taken > step)):
                    return losses
                if what == "loss 'kl'":
                    return replace(losses, parts={**losses.parts, "kl": losses.parts["kl"] * value})
                total = losses.total * 1.0
                total.register_hook(lambda gradient: gradient * value)
                return replace(losses, total=total)

            monkeypatch.setattr(Objective, "model_loss", model_loss)

        return spoil

    @pytest.mark.parametrize(("what", "value"), [("loss 'kl'", float("nan")), ("gradient", float("inf"))])
    def test_the_step_is_named_and_the_last_good_checkpoint_kept(self, config, tmp_path, wrong_at, what, value):
        folder = tmp_path / "mine"
        run(config.replace(out=folder, epochs=1))
        step = checkpoints.read_document(folder / "last.safetensors")["clock"]["step"] + 3
        wrong_at(3, what, value)
        with pytest.raises(TrainingError) as caught:
            run(config.replace(out=folder, epochs=3, checkpoint_every=1e-9))
        message = str(caught.value)
        assert message.startswith(f"the {what} of step {step}, in epoch 2,") and "\nhint: " in message
        assert f"{folder / 'last.safetensors'}, after epoch" in message
        clock = checkpoints.read_document(folder / "last.safetensors")["clock"]
        assert clock["step"] < step and f"after epoch {clock['epoch']}, step {clock['batch']}" in message
        assert all(value.isfinite().all() for value in load_file(folder / "last.safetensors").values())
        assert [row["epoch"] for row in rows(folder)] == ["1"]

    def test_nothing_is_named_where_nothing_was_saved(self, config, wrong_at):
        wrong_at(1, "loss 'kl'")
        with pytest.raises(TrainingError, match="the loss 'kl' of step 1, in epoch 1, .*\n.*nothing had been saved"):
            run(config)

    def test_a_stop_saves_no_non_finite_state(self, config, tmp_path, wrong_at, monkeypatch):
        monkeypatch.setattr(sync, "SYNC_INTERVAL_SECONDS", 1e9)  # the detector has not been read when the stop comes
        wrong_at(2, "gradient")
        with pytest.raises(TrainingError, match="gradient of step 2"):
            run(config.replace(out=tmp_path / "mine"), stop_after=5)
        assert not (tmp_path / "mine" / "last.safetensors").exists()

    def test_fp16_gets_over_a_step_that_overflows_but_not_over_all(self, config, tmp_path, wrong_at, monkeypatch):
        config = config.replace(precision="fp16")
        wrong_at(3, "gradient", float("inf"))
        _, end = run(config.replace(out=tmp_path / "once"))
        assert isinstance(end, Finished)
        wrong_at(3, "gradient", float("inf"), ever_after=True)
        with pytest.raises(TrainingError, match=r"the gradient \(in fp16, at every scale\) of step"):
            run(config.replace(out=tmp_path / "ever", epochs=20))

    def test_the_detector_does_not_change_the_steps(self, config, tmp_path, monkeypatch):
        run(config.replace(out=tmp_path / "watched"))
        monkeypatch.setattr("aecli.training.sync.NonFiniteDetector.update", lambda detector, loss: None)
        run(config.replace(out=tmp_path / "unwatched"))
        assert_same_run(tmp_path / "watched", tmp_path / "unwatched")


class TestWritesThatFail:
    @pytest.mark.draws
    def test_a_picture_that_cannot_be_written_costs_no_training(self, config, tmp_path, monkeypatch):
        monkeypatch.setattr("aecli.training.observers.previews.draw_curves", lambda rows: b"curves")
        (tmp_path / "mine" / "curves.png").mkdir(parents=True)
        (tmp_path / "mine" / "curves.png").rmdir()
        reports = loop.train(config.replace(out=tmp_path / "mine"))
        until(reports, StepReport)
        (tmp_path / "mine" / "curves.png").mkdir()
        with pytest.raises(OutputError, match=r"curves\.png can't be written") as caught:
            list(reports)
        assert f"the run is saved in {tmp_path / 'mine'}" in str(caught.value)
        assert checkpoints.read_document(tmp_path / "mine" / "last.safetensors")["epoch"] == 1
        (tmp_path / "mine" / "curves.png").rmdir()
        run(config.replace(out=tmp_path / "mine"))
        run(config.replace(out=tmp_path / "whole"))
        assert_same_run(tmp_path / "whole", tmp_path / "mine")

    def test_images_that_go_away_cost_no_training(self, config, tmp_path, monkeypatch):
        real = loaders.iterate

        def gone_after_two(*arguments):
            for number, batch in enumerate(real(*arguments)):
                if number == 2:
                    raise DataError("the folder is gone")
                yield batch

        monkeypatch.setattr(loaders, "iterate", gone_after_two)
        with pytest.raises(DataError, match="the folder is gone\nhint: the run is saved in"):
            run(config.replace(out=tmp_path / "mine"))
        clock = checkpoints.read_document(tmp_path / "mine" / "last.safetensors")["clock"]
        assert (clock["epoch"], clock["batch"]) == (0, 2)
        monkeypatch.undo()
        run(config.replace(out=tmp_path / "mine"))
        run(config.replace(out=tmp_path / "whole"))
        assert_same_run(tmp_path / "whole", tmp_path / "mine")
